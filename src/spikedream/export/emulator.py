"""Exported C on small computers that QEMU emulates: does it give the host's bits, and what does it take?"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spikedream.nodes import Unexportable

BOARDS_DIRECTORY = Path(__file__).parent / "boards"
EXACT = ("-std=c99", "-O2", "-ffp-contract=off")
CODE, STACK = 4096, 1024  # bytes that code and stack may take beside weights and state


class ToolMissing(ImportError):
    """A compiler or an emulator is not installed; the message names its Debian package."""


@dataclass(frozen=True)
class Board:
    """A small computer: what compiles for it, what emulates it, and what it holds, in bytes."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    packages: tuple[str, str]  # Debian's, of compiler and emulator
    startup: str
    entry: str
    flash: int
    ram: int
    flash_origin: int = 0
    ram_origin: int = 0x20000000

    def check(self, tables: int, state: int, of: str) -> None:
        """Raises Unexportable where the board cannot hold an actor or a learner of so many bytes: the limit and the need."""
        for what, limit, need in (("flash", self.flash, tables + CODE), ("RAM", self.ram, state + STACK)):
            if need > limit:
                raise Unexportable(
                    f"{self.name} has {limit / 1024:.0f} KiB of {what}, and this {of} needs about {need / 1024:.0f} KiB;"
                    " a smaller one would fit, or a larger board"
                )


ARM = ("gcc-arm-none-eabi", "qemu-system-arm")
QEMU = ("-nographic", "-semihosting-config", "enable=on,target=native")
BOARDS = {
    board.name: board
    for board in (
        Board(
            "cortex-m4", "arm-none-eabi-gcc", ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
            ("qemu-system-arm", "-M", "mps2-an386", *QEMU, "-icount", "shift=7"), ARM, "cortex_m.c", "vectors",
            flash=4 << 20, ram=4 << 20,
        ),
        Board(
            "cortex-m3", "arm-none-eabi-gcc", ("-mcpu=cortex-m3", "-mthumb"),
            ("qemu-system-arm", "-M", "lm3s6965evb", *QEMU, "-icount", "shift=7"), ARM, "cortex_m.c", "vectors",
            flash=256 << 10, ram=64 << 10,
        ),
        Board(
            "rv32", "riscv64-unknown-elf-gcc", ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany"),
            ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *QEMU, "-icount", "shift=0"),
            ("gcc-riscv64-unknown-elf", "qemu-system-misc"), "riscv.c", "_start",
            flash=4 << 20, ram=4 << 20, flash_origin=0x80000000, ram_origin=0x80400000,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Emulated:
    """What an actor does on a board, and what it takes there."""

    output: str  # of the self-test
    passed: bool
    instructions: list[int]  # of each decision on the test vectors
    flash: int  # bytes of the least complete program that acts
    ram: int  # of its data, and of the stack that a decision takes
    actor: int  # bytes of the actor's own code and tables


def missing(board: Board) -> ToolMissing | None:
    """What is not installed."""
    for tool, package in zip((board.compiler, board.emulator[0]), board.packages, strict=True):
        if shutil.which(tool) is None:
            return ToolMissing(f"{tool} is not installed, which {board.name} needs: apt-get install {package}")
    return None


def emulate(directory: Path, board: Board) -> Emulated:
    """The actor that was exported to `directory`.

    Raises:
        ToolMissing: compiler or emulator is not installed.
        Unexportable: the board cannot hold it, or takes too long.
    """
    if (lacking := missing(board)) is not None:
        raise lacking
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "memory.ld").write_text((BOARDS_DIRECTORY / "memory.ld").read_text() % vars(board))
        (work / "print.h").write_text('#include "board.h"\n#define PRINT(text) print(text)\n')
        actor, test = directory / "actor.c", directory / "selftest.c"
        _compile(board, directory, work, "actor.o", "-c", actor)
        selftest = _program(board, directory, work, "selftest", "-include", work / "print.h", test)
        measure = _program(board, directory, work, "measure", BOARDS_DIRECTORY / "measure.c", work / "actor.o")
        minimal = _program(board, directory, work, "minimal", BOARDS_DIRECTORY / "minimal.c", work / "actor.o")
        tested = _emulate(board, selftest)
        said = _emulate(board, measure)
        measured = {words[0]: list(map(int, words[1:])) for words in map(str.split, said.stdout.splitlines())}
        if not {"instructions", "stack"} <= set(measured) or not tested.stdout:
            raise _silent(board, tested if not tested.stdout else said)
        text, data, bss = _sizes(board, minimal)
        return Emulated(
            tested.stdout, tested.returncode == 0, measured["instructions"], text + data, data + bss + measured["stack"][0],
            sum(_sizes(board, work / "actor.o")[:2]),
        )  # fmt: skip


def _program(board: Board, directory: Path, work: Path, name: str, *arguments: str | Path) -> Path:
    """A whole image, linked for the board."""
    own = (BOARDS_DIRECTORY / board.startup, BOARDS_DIRECTORY / "library.c")
    return _compile(board, directory, work, name, *arguments, *own, "-nostdlib", "-T", work / "memory.ld", "-lgcc")


def _compile(board: Board, directory: Path, work: Path, name: str, *arguments: str | Path) -> Path:
    out = work / name
    includes = (f"-I{directory}", f"-I{BOARDS_DIRECTORY}")
    options = ("-ffreestanding", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
    command = [board.compiler, *board.flags, *EXACT, *options, *includes, *map(str, arguments), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        over = next((line.partition("region ")[2] for line in lines if "overflowed" in line), None)
        if over is not None:
            has = f"{board.flash / 1024:.0f} KiB of flash and {board.ram / 1024:.0f} KiB of RAM"
            raise Unexportable(f"{board.name} has {has}, and the actor does not fit: {over}")
        raise Unexportable(f"{board.compiler} cannot compile the actor: {lines[0]}")
    return out


def _emulate(board: Board, program: Path, patience: float = 300) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([*board.emulator, "-kernel", str(program)], capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise Unexportable(
            f"{board.emulator[0]} did not end {program.name} on {board.name} within {patience:g} s; a smaller network takes less"
        ) from error


def _silent(board: Board, done: subprocess.CompletedProcess[str]) -> Unexportable:
    """Of a program that ended without saying what it was to say."""
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return Unexportable(f"{board.emulator[0]} ended with status {done.returncode} on {board.name}: {last}")


def _sizes(board: Board, file: Path) -> tuple[int, int, int]:
    """Bytes of text and constants, of initialised data, and of zeros."""
    size = subprocess.run([board.compiler.replace("gcc", "size"), str(file)], capture_output=True, text=True, check=True)
    text, data, bss = map(int, size.stdout.splitlines()[1].split()[:3])
    return text, data, bss


# ---- learning there


@dataclass(frozen=True)
class Trained:
    """What a learner came to on a board, with its environment inside, and what it took."""

    solved: int | None  # steps after which greedy episodes first reached the threshold; None where they did not
    returns: dict[int, int]  # after so many steps the mean return of greedy episodes
    hash: int  # of all that was learned: the same on every machine
    instructions: int  # of a step, in the mean: deciding, the environment, learning
    most: int  # of a step
    deciding: int  # of a step's, in the mean, those that decide
    learning: int  # and those that learn, and dream
    code: int  # bytes of the learner without its tables
    flash: int  # bytes of the whole program, environment and evaluation included
    ram: int  # of its data


def train_on(directory: Path, board: Board, seed: int = 1, steps: int = 20000, every: int = 500, episodes: int = 100) -> Trained:
    """The learner that was exported to `directory`, of CartPole-v1: it learns there, and is evaluated there.

    Args:
        directory: of `export_learner`.
        board: where.
        seed: decides what is explored and where episodes begin.
        steps: at most; it ends when it is solved.
        every: steps between evaluations, of so many `episodes`.

    Raises:
        ToolMissing: compiler or emulator is not installed.
        Unexportable: the board cannot hold it or takes too long, or there is no environment in C.
    """
    if (lacking := missing(board)) is not None:
        raise lacking
    if not (directory / "train.c").exists():
        raise Unexportable(f"{directory} has no environment in C: there is one for CartPole-v1")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "memory.ld").write_text((BOARDS_DIRECTORY / "memory.ld").read_text() % vars(board))
        (work / "print.h").write_text('#include "board.h"\n#define PRINT(text) print(text)\n')
        defined = [
            f"-D{name}={x}" for name, x in zip(("SEED", "STEPS", "EVERY", "EPISODES"), (seed, steps, every, episodes), strict=True)
        ]
        sources = [directory / f"{name}.c" for name in ("learner", "network", "dreams", "model")]
        learner = [_compile(board, directory, work, f"{file.stem}.o", "-c", file) for file in sources if file.exists()]
        how = ("-DINSTRUCTIONS", *defined, "-include", work / "print.h")
        program = _program(board, directory, work, "train", *how, directory / "train.c", *learner)
        done = _emulate(board, program, patience=1800)
        said = done.stdout.splitlines()
        if len(said) < 2:
            raise _silent(board, done)
        text, data, bss = _sizes(board, program)
        sections = subprocess.run(
            [board.compiler.replace("gcc", "size"), "-A", *map(str, learner)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    code = sum(int(words[1]) for words in map(str.split, sections) if words and words[0].startswith(".text"))
    returns = {int(w[1]): int(w[3]) for w in map(str.split, said) if w[0] == "steps"}
    counts, last = (list(map(int, line.split()[1::2])) for line in said[-2:])
    return Trained(last[0] or None, returns, last[1], *counts, code=code, flash=text + data, ram=data + bss)
