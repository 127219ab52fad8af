"""The build hook: compiles `ops/csrc` into one library for the CPU and one for CUDA.

Both stand on PyTorch's stable ABI, so that a library compiled against one torch (2.10 or later)
loads under every later one. The CUDA library needs nvcc, not a GPU: it is taken from CUDA_HOME,
from the `cuda-toolkit` wheel in the build environment, or from PATH. Whatever goes wrong while it
is compiled, the CPU library is installed, and `_cuda_missing.txt` beside it says why the other is
not. DEFORM_CONV_CUDA=1 makes that an error, DEFORM_CONV_CUDA=0 does not try.

CXX, CXXFLAGS and LDFLAGS are respected for the CPU library; TORCH_CUDA_ARCH_LIST, such as
"8.0;9.0", chooses other GPU architectures.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension
from setuptools.command.build_ext import build_ext

STABLE_ABI = "0x020a000000000000"  # torch 2.10
DEFINES = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", "-DUSE_CUDA"]
CUDA_ARCHITECTURES = "8.0 9.0 10.0 12.0"
REASON = "_cuda_missing.txt"  # beside the libraries: one line, why that of CUDA is not among them


class BuildError(RuntimeError):
    """A library cannot be compiled. The message holds the compiler's first error."""


class BuildLibraries(build_ext):
    """Plain shared libraries, loaded by `torch.ops.load_library`; they hold no Python module."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the library of one device."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if ext.name.endswith("_cpu"):
            build_cpu(ext.sources, target)
        else:
            build_cuda_if_possible(ext.sources, target)

    def get_ext_filename(self, fullname: str) -> str:
        """`ops/_cpu.so`: the library depends on no version of Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def copy_extensions_to_source(self) -> None:
        """For an editable install, which has the libraries, and the reason, in the source tree."""
        built, source = Path(self.build_lib) / "ops", Path(__file__).parent
        for name in ("_cuda.so", REASON):  # not those of an earlier build
            (source / name).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        if (built / REASON).exists():
            shutil.copy(built / REASON, source / REASON)


def build_cpu(sources: list[str], target: Path) -> None:
    """Compile for the baseline processor, and the kernels for every capability; link the lot.

    The library chooses among the kernels when it runs.
    """
    with TemporaryDirectory() as folder:
        objects = []
        for source in sources:
            for name, options in capabilities(Path(source).name).items():
                objects.append(f"{folder}/{Path(source).stem}_{name}.o")
                compile_cpu(source, options, objects[-1])
        links = [*torch_links("torch_cpu"), *shlex.split(os.environ.get("LDFLAGS", ""))]
        run([*find_compiler(), "-shared", *objects, *links, "-o", str(target)])


def compile_cpu(source: str, options: list[str], target: str) -> None:
    """Compile one file; the options come after those of CXXFLAGS."""
    run([
        *find_compiler(), "-fPIC", "-std=c++20", "-O3", "-ffp-contract=fast", "-fvisibility=hidden",
        *DEFINES[:1], *torch_includes(), *shlex.split(os.environ.get("CXXFLAGS", "")), *options,
        "-c", source, "-o", target,
    ])  # fmt: skip


def capabilities(file: str) -> dict[str, list[str]]:
    """The processors that a file is compiled for, and the compiler's options for each.

    Kernels are compiled for several; those of RoI pooling make no products of 16-bit numbers.
    """
    if file not in ("kernels.cpp", "roi_kernels.cpp"):
        return {"": []}
    found: dict[str, list[str]] = {"portable": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        found["portable"] = ["-march=x86-64"]  # whatever CXXFLAGS say
        found["avx2"] = [*found["portable"], "-mavx2", "-mfma"]
        found["avx512"] = [*found["avx2"], *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
        if file == "kernels.cpp":
            found["avx512_bf16"] = [*found["avx512"], "-mavx512bf16"]
            found["amx"] = [*found["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]
    return {name: [*flags, f"-DDEFORM_CONV_CAPABILITY={name}"] for name, flags in found.items()}


def build_cuda_if_possible(sources: list[str], target: Path) -> None:
    """Compile the CUDA library, or leave the reason why not in its place.

    Raises:
        BuildError: it cannot be compiled and DEFORM_CONV_CUDA is 1, or is none of auto, 0, 1.
    """
    wanted = os.environ.get("DEFORM_CONV_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise BuildError(f"DEFORM_CONV_CUDA={wanted} is none of auto, 0, 1")
    reason_file = target.with_name(REASON)
    reason_file.unlink(missing_ok=True)
    try:
        if wanted == "0":
            raise BuildError("it was left out by DEFORM_CONV_CUDA=0")
        build_cuda(sources, target)
    except (BuildError, OSError) as error:
        if wanted == "1":
            raise BuildError(f"DEFORM_CONV_CUDA=1, but {error}") from error
        target.unlink(missing_ok=True)
        reason_file.write_text(f"{error}\n")
        print(f"the CUDA library is not built: {error}", file=sys.stderr)


def build_cuda(sources: list[str], target: Path) -> None:
    """Compile with the CUDA runtime linked statically: any CUDA build of torch can load it.

    Raises:
        BuildError: nvcc or torch's CUDA part is not there, or nvcc fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("no nvcc was found in CUDA_HOME, beside torch or on PATH")
    if not list((torch_root() / "lib").glob("libtorch_cuda.*")):
        raise BuildError("the torch that it was built with is for the CPU only")
    numbers = architectures(nvcc)
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    last = numbers[-1].rstrip("af")
    flags += [f"-gencode=arch=compute_{last},code=compute_{last}"]  # PTX, for later GPUs
    run([
        str(nvcc), "-shared", "-std=c++20", "-O3", "--threads=0",
        "-Xcompiler", "-fPIC,-fvisibility=hidden", *flags, *DEFINES, *torch_includes(),
        f"-L{nvcc.parent.parent / 'lib'}", *sources,
        *torch_links("torch_cuda", "torch_cpu"), "-allow-unsupported-compiler", "-o", str(target),
    ])  # fmt: skip


def architectures(nvcc: Path) -> list[str]:
    """The numbers of TORCH_CUDA_ARCH_LIST, or of those of ours that this nvcc knows."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    numbers = re.sub(r"[.]|\+PTX", "", chosen or CUDA_ARCHITECTURES).replace(";", " ").split()
    if chosen:
        return numbers
    listed = run([str(nvcc), "--list-gpu-arch"]).split()
    return [number for number in numbers if f"compute_{number}" in listed]


def run(command: list[str]) -> str:
    """Run a compiler, show what it prints and return it.

    Raises:
        BuildError: it fails; the message has the first line that speaks of an error.
    """
    print(shlex.join(command), file=sys.stderr)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(done.stdout, end="", file=sys.stderr)
    if done.returncode:
        raise BuildError(f"{command[0]} {failure(done.returncode, done.stdout)}")
    return done.stdout


def failure(returncode: int, output: str) -> str:
    """What went wrong with a compiler, in one line: a negative code is the signal that ended it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|killed)\b", line, re.IGNORECASE)]
    how = f"failed with exit code {returncode}"
    if returncode < 0:
        how = f"was ended by signal {-returncode}, perhaps for want of memory"
    return ": ".join([how, *(errors or lines)[:1]])


def torch_root() -> Path:
    """The torch of the build environment, found without the seconds that importing it takes."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is needed to build: pip install torch, or build with isolation")
    return Path(spec.origin).parent


def torch_includes() -> list[str]:
    include = torch_root() / "include"
    return [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]


def torch_links(*libraries: str) -> list[str]:
    return [f"-L{torch_root() / 'lib'}", *(f"-l{library}" for library in libraries)]


def find_compiler() -> list[str]:
    """CXX, which may be a command with arguments, or what is called c++, g++ or clang++."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given and not shutil.which(given[0]):
        raise BuildError(f"CXX={os.environ['CXX']}: there is no {given[0]}")
    for command in (given, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise BuildError("a C++20 compiler is needed to build: install g++ or clang++, or set CXX")


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, of the PyPI wheel beside torch, or on PATH, in this order."""
    site = [Path(path) for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
    site += [torch_root().parent]
    places = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    places += [home for path in site for home in sorted(path.glob("nvidia/cu*"), reverse=True)]
    for place in places:
        if (place / "bin/nvcc").exists():
            return place / "bin/nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None
