# An image that trains on NVIDIA GPUs. It runs the README's two commands in a copy of the checkout:
#
#   docker build -f docker/cuda.Dockerfile -t deformable:cuda .
#   docker run --rm --gpus all --shm-size=8g deformable:cuda                 # python train.py
#   docker run --rm --gpus all --shm-size=8g deformable:cuda python train.py devices=4
#   docker build -f docker/cuda.Dockerfile --target tests -t deformable:cuda-tests .
#   docker run --rm --gpus all --shm-size=8g deformable:cuda-tests           # pytest -m cuda
#
# The host needs a driver and the NVIDIA Container Toolkit, but no CUDA toolkit: pip installs CUDA's
# libraries together with torch and, for the build, nvcc. No GPU is needed to build.
#
# Run folders are written to /home/trainer/project/runs by the user with the id 1000. Mount a folder
# there that this user may write to. The processes that load data and NCCL need --shm-size.
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
# DEFORM_CONV_CUDA=1 makes the build fail if the CUDA library cannot be compiled. To compile faster,
# for fewer GPUs, give for instance --build-arg TORCH_CUDA_ARCH_LIST=9.0.
ARG TORCH_CUDA_ARCH_LIST=
ENV PIP_NO_CACHE_DIR=1 DEFORM_CONV_CUDA=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -m venv .venv && . .venv/bin/activate && pip install -e .
ENV VIRTUAL_ENV=/home/trainer/project/.venv
ENV PATH=$VIRTUAL_ENV/bin:$PATH

FROM installed AS tests
ARG TORCH_CUDA_ARCH_LIST=
RUN pip install -e '.[test]'
CMD ["pytest", "-m", "cuda"]

FROM installed AS training
CMD ["python", "train.py"]
