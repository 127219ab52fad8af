# An image that trains without a GPU. It runs the README's two commands in a copy of the checkout:
#
#   docker build -f docker/cpu.Dockerfile -t deformable:cpu .
#   docker run --rm --shm-size=2g deformable:cpu                             # python train.py
#   docker run --rm --shm-size=2g deformable:cpu python train.py deform=none
#   docker build -f docker/cpu.Dockerfile --target tests -t deformable:tests .
#   docker run --rm --shm-size=2g deformable:tests                           # pytest
#
# Run folders are written to /home/trainer/project/runs by the user with the id 1000. Mount a folder
# there that this user may write to. The processes that load data need --shm-size.
FROM debian:bookworm-slim AS installed
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates g++ python-is-python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trainer \
    && install -d -o trainer -g trainer /home/trainer/project
USER 1000
WORKDIR /home/trainer/project
COPY --chown=1000:1000 . .
# PyTorch's index has builds of torch without CUDA's libraries, which pip prefers to those of PyPI.
# Without access to this index, --build-arg TORCH_INDEX= installs torch from PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1 DEFORM_CONV_CUDA=0
RUN python -m venv .venv && . .venv/bin/activate && pip install -e .
ENV VIRTUAL_ENV=/home/trainer/project/.venv
ENV PATH=$VIRTUAL_ENV/bin:$PATH

FROM installed AS tests
RUN pip install -e '.[test]'
CMD ["pytest"]

FROM installed AS training
CMD ["python", "train.py"]
