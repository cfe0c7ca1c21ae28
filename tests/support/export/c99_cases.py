"""Run a policy's C sources on cases compiled in: on this machine under sanitizers, on an emulated Cortex-M4 and AVR."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trpo_tf.export import PolicySpec
from trpo_tf.export.c99 import SOURCE_FILE
from trpo_tf.export.c99.c_files import arguments
from trpo_tf.serving.runtime.observations import Observation, by_name

FIRMWARE = Path(__file__).parent / "firmware"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
BOARD_TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
BOARD_PACKAGES = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
AVR_TOOLS = ("avr-gcc", "simavr")
AVR_PACKAGES = "gcc-avr avr-libc simavr"
CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-O2", "--specs=nano.specs")
_QEMU = (
    *("qemu-system-arm", "-machine", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"),
    *("-semihosting-config", "enable=on,target=native", "-icount", "shift=0"),
)
AVR = "atmega328p"
"""32 KB of flash and 2 KB of RAM, in an Arduino Uno."""
_ARM = ("arm-none-eabi-gcc", *CORTEX_M4)
_GIVEN_UP_AFTER = 120


@dataclass(frozen=True)
class BoardRun:
    """What the board answered [case, ...], instructions of an action on average, and bytes.

    `flash` and `ram` (static) are the policy's with what it needs of the C library, `stack` is what an action writes,
    and `counted` the instructions counted of 131,072.
    """

    actions: np.ndarray
    instructions: int
    stack: int
    flash: int
    ram: int
    counted: int


def cases_header(spec: PolicySpec, observations: Observation, noise: np.ndarray) -> str:
    """C that defines CASES, `action` and `act(k)`. Each array of a case stands alone, so that a sanitizer guards it.

    A policy with state carries its own, from all bits set at first; `reset` of the cases says where an episode starts.
    """
    *inputs, action = arguments(spec)
    named = by_name(observations, spec.observation[0].name)
    arrays = {part.name: named[part.name] for part in spec.observation} | {spec.noise.name: noise}
    lines = ['#include "policy.h"', "#include <math.h>", f"#define CASES {len(noise)}"]
    for memory, values in zip(inputs, arrays.values(), strict=True):
        names = []
        for k, row in enumerate(values.reshape(len(noise), -1)):
            if memory.name == "noise" and not row.any():
                names.append("0")
                continue
            names.append(f"{memory.name}_{k}")
            lines.append(f"static const {memory.c_type} {names[-1]}[] = {{{_numbers(row)}}};")
        lines.append(f"static const {memory.c_type} *const {memory.name}[CASES] = {{{', '.join(names)}}};")
    lines.append(f"static {action.c_type} action[POLICY_ACTION];")
    given = ", ".join([*(["&state"] if spec.state else []), *(f"{memory.name}[k]" for memory in inputs)])
    if spec.state:
        lines.append("#include <string.h>\nstatic policy_state state;")
        lines.append(f"static const uint8_t starts[CASES] = {{{', '.join(map(str, named['reset'].astype(int)))}}};")
        start = "    if (k == 0) {\n        memset(&state, 255, sizeof state);\n    }\n"
        start += "    if (starts[k]) {\n        policy_reset(&state);\n    }\n"
    else:
        start = ""
    lines.append(f"static void act(int k)\n{{\n{start}    policy_act({given}, action);\n}}")
    return "\n".join(lines) + "\n"


def sanitized(
    sources: Mapping[str, bytes], spec: PolicySpec, observations: Observation, noise: np.ndarray, folder: Path
) -> np.ndarray:
    """The actions [case, ...], from a build that stops at what C does not define."""
    _write(folder, sources, cases_header(spec, observations, noise))
    sanitizers = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    _run(folder, "cc", *STRICT, *sanitizers, f"-I{folder}", SOURCE_FILE, FIRMWARE / "host.c", "-o", "cases", "-lm")
    return _actions(_run(folder, folder / "cases"), spec)


def on_the_board(
    sources: Mapping[str, bytes], spec: PolicySpec, observations: Observation, noise: np.ndarray, folder: Path
) -> BoardRun:
    """Build for a Cortex-M4 with a floating-point unit, and run on QEMU's mps2-an386."""
    _require(BOARD_TOOLS, BOARD_PACKAGES)
    _write(folder, sources, cases_header(spec, observations, noise))
    linked = ("policy.o", "-nostartfiles", "-Wl,--gc-sections", "-lm")
    board = (f"-I{folder}", FIRMWARE / "board.c", FIRMWARE / "main.c", "-T", FIRMWARE / "board.ld")
    _run(folder, *_ARM, *STRICT, "-c", SOURCE_FILE, "-o", "policy.o")
    _run(folder, *_ARM, "-Wall", "-Wextra", "-Werror", *board, *linked, "-o", "board.elf")
    # By itself: what the policy and the functions it calls add to a firmware.
    _run(folder, *_ARM, "-Wl,--entry=policy_act", *linked, "-o", "policy.elf")
    text, data, bss = map(int, _run(folder, "arm-none-eabi-size", "policy.elf").splitlines()[1].split()[:3])
    said = _run(folder, *_QEMU, "-kernel", "board.elf")
    figures = dict(re.findall(r"^(counted|instructions|stack) (\w+)$", said, re.MULTILINE))
    return BoardRun(
        _actions(said, spec),
        flash=text + data,
        ram=data + bss,
        **{name: int(figure, 16) for name, figure in figures.items()},
    )


def on_an_avr(
    sources: Mapping[str, bytes], spec: PolicySpec, observations: Observation, noise: np.ndarray, folder: Path
) -> np.ndarray:
    """The actions [case, ...], from a build for `AVR` that simavr runs. The cases take RAM too."""
    _require(AVR_TOOLS, AVR_PACKAGES)
    _write(folder, sources, cases_header(spec, observations, noise))
    compiler = ("avr-gcc", f"-mmcu={AVR}", "-std=gnu99", "-Os", "-Wall", "-Wextra", "-Werror", f"-I{folder}")
    _run(folder, *compiler, SOURCE_FILE, FIRMWARE / "avr.c", "-o", "avr.elf", "-lm")
    return _actions(_run(folder, "simavr", "-m", AVR, "-f", "16000000", "avr.elf"), spec)


def _require(tools: Sequence[str], packages: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} not found; apt-get install {packages}")


def _write(folder: Path, sources: Mapping[str, bytes], cases: str) -> None:
    for name, content in {**sources, "cases.h": cases.encode()}.items():
        (folder / name).write_bytes(content)


def _run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_GIVEN_UP_AFTER,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr}{done.stdout[-500:]}"
    return done.stdout + done.stderr


def _actions(said: str, spec: PolicySpec) -> np.ndarray:
    # simavr writes colours around a line.
    rows = [[int(word, 16) for word in found.split()] for found in re.findall(r"action((?: [0-9a-f]{8})+)", said)]
    dtype = np.float32 if np.dtype(spec.action.dtype).kind == "f" else np.int32
    actions = np.array(rows, np.uint32).view(dtype)
    return actions.reshape(len(rows), *spec.action.shape).astype(spec.action.dtype)


def _numbers(row: Sequence[np.generic]) -> str:
    return ", ".join(map(_number, row.astype(np.float32) if row.dtype.kind == "f" else row))


def _number(value: np.generic) -> str:
    if value.dtype.kind != "f":
        return str(int(value))
    if np.isnan(value):
        return "NAN"
    return f"{float(value).hex()}f" if np.isfinite(value) else f"{'-' if value < 0 else ''}INFINITY"
