"""The build hook: compiles `ops/csrc` into one library for the CPU and one for CUDA.

Both libraries use PyTorch's stable ABI, so a library compiled against one torch (2.10 or later)
loads under every later one. Compiling the CUDA library needs nvcc but no GPU. nvcc is taken from
CUDA_HOME, from the `cuda-toolkit` wheel in the build environment, or from PATH. If the CUDA library
cannot be compiled, the CPU library is installed alone, and `_cuda_missing.txt` beside it gives the
reason. With DEFORM_CONV_CUDA=1 such a failure is an error; with DEFORM_CONV_CUDA=0 the CUDA library
is not compiled at all.

CXX, CXXFLAGS and LDFLAGS apply to the CPU library. TORCH_CUDA_ARCH_LIST, such as "8.0;9.0", chooses
the GPU architectures.
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
REASON = "_cuda_missing.txt"  # a file beside the libraries: why _cuda.so is missing, in one line


class BuildError(RuntimeError):
    """A library cannot be compiled. The message gives the compiler's first error."""


class BuildLibraries(build_ext):
    """Builds plain shared libraries for `torch.ops.load_library`; they contain no Python module."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the library of one device."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if ext.name.endswith("_cpu"):
            build_cpu(ext.sources, target)
        else:
            build_cuda_if_possible(ext.sources, target)

    def get_ext_filename(self, fullname: str) -> str:
        """Return a name such as `ops/_cpu.so`, without a Python version: it fits all of them."""
        return str(Path(*fullname.split("."))) + ".so"

    def copy_extensions_to_source(self) -> None:
        """Copy the libraries, and the reason if _cuda.so is missing, to an editable install."""
        built, source = Path(self.build_lib) / "ops", Path(__file__).parent
        for name in ("_cuda.so", REASON):  # left by an earlier build
            (source / name).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        if (built / REASON).exists():
            shutil.copy(built / REASON, source / REASON)


def build_cpu(sources: list[str], target: Path) -> None:
    """Compile the sources and link them into the CPU library.

    The kernels are compiled once for every capability, everything else for the baseline processor.
    The library chooses among the kernels at run time.
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
    """Compile one file; `options` follow CXXFLAGS on the command line and so override them."""
    run([
        *find_compiler(), "-fPIC", "-std=c++20", "-O3", "-ffp-contract=fast", "-fvisibility=hidden",
        *DEFINES[:1], *torch_includes(), *shlex.split(os.environ.get("CXXFLAGS", "")), *options,
        "-c", source, "-o", target,
    ])  # fmt: skip


def capabilities(file: str) -> dict[str, list[str]]:
    """Return the capabilities that a file is compiled for, and the compiler options of each.

    Only files of kernels have more than one. RoI pooling multiplies no 16-bit matrices and
    therefore has no kernels for AVX512-BF16 and AMX.
    """
    if file not in ("kernels.cpp", "roi_kernels.cpp"):
        return {"": []}
    found: dict[str, list[str]] = {"portable": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        found["portable"] = ["-march=x86-64"]  # overrides CXXFLAGS
        found["avx2"] = [*found["portable"], "-mavx2", "-mfma"]
        found["avx512"] = [*found["avx2"], *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
        if file == "kernels.cpp":
            found["avx512_bf16"] = [*found["avx512"], "-mavx512bf16"]
            found["amx"] = [*found["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]
    return {name: [*flags, f"-DDEFORM_CONV_CAPABILITY={name}"] for name, flags in found.items()}


def build_cuda_if_possible(sources: list[str], target: Path) -> None:
    """Compile the CUDA library; if that fails, write the reason to a file in its place.

    Raises:
        BuildError: DEFORM_CONV_CUDA is 1 and the library cannot be compiled, or
            DEFORM_CONV_CUDA is not auto, 0 or 1.
    """
    wanted = os.environ.get("DEFORM_CONV_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise BuildError(f"DEFORM_CONV_CUDA={wanted} must be auto, 0 or 1")
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
    """Compile with a statically linked CUDA runtime, so that any CUDA build of torch can load it.

    Raises:
        BuildError: there is no nvcc, torch is built without CUDA, or nvcc fails.
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
    """Return the GPU architectures to compile for, such as "80" and "90a".

    They are those of TORCH_CUDA_ARCH_LIST or, if it is not set, those of `CUDA_ARCHITECTURES` that
    this nvcc supports.
    """
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    numbers = re.sub(r"[.]|\+PTX", "", chosen or CUDA_ARCHITECTURES).replace(";", " ").split()
    if chosen:
        return numbers
    listed = run([str(nvcc), "--list-gpu-arch"]).split()
    return [number for number in numbers if f"compute_{number}" in listed]


def run(command: list[str]) -> str:
    """Run a compiler, copy its output to stderr and return it.

    Raises:
        BuildError: the compiler fails. The message quotes the first line that mentions an error.
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
    """Describe the failure of a compiler in one line.

    Args:
        returncode: exit code, or the negative number of the signal that ended the compiler.
        output: everything that the compiler printed.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|killed)\b", line, re.IGNORECASE)]
    how = f"failed with exit code {returncode}"
    if returncode < 0:
        how = f"was ended by signal {-returncode}, perhaps because memory ran out"
    return ": ".join([how, *(errors or lines)[:1]])


def torch_root() -> Path:
    """Return the folder of the build environment's torch, without the slow import of torch."""
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
    """Return CXX, which may be a command with arguments, or the first of c++, g++ and clang++."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given and not shutil.which(given[0]):
        raise BuildError(f"CXX={os.environ['CXX']}: there is no {given[0]}")
    for command in (given, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise BuildError("a C++20 compiler is needed to build: install g++ or clang++, or set CXX")


def find_nvcc() -> Path | None:
    """Find nvcc in CUDA_HOME, in the PyPI wheel beside torch, or on PATH, in this order."""
    site = [Path(path) for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
    site += [torch_root().parent]
    places = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    places += [home for path in site for home in sorted(path.glob("nvidia/cu*"), reverse=True)]
    for place in places:
        if (place / "bin/nvcc").exists():
            return place / "bin/nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None
