"""What the demo's recording says: where each chunk was heard, gaps in it, how soon a barge-in was followed by silence."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from higgs_voice import ChunkReport

RATE = 24000
JITTER_S = 0.06
"""What the listening device holds back, as a browser does, so that packets may come unevenly."""
VOICE = 0.012
"""Level, as a share of full scale over 10 ms, above which the recording counts as sound."""
BLOCK = RATE // 5
HOP = RATE // 20
CAPTION = 250
"""Characters of a caption that fit across the whole plot."""
MOST_DELAY = RATE * 5 // 2
"""How far a turn may fall behind: the LLM's stall, and some."""


@dataclass(slots=True)
class Said:
    """One turn of the agent, as it left the service."""

    turn: int
    began: float
    """When its first sound was handed to the transport, wall clock."""
    sound: bytearray = field(default_factory=bytearray)
    """int16 at 24 kHz."""
    reports: list[ChunkReport] = field(default_factory=list[ChunkReport])
    stalled_before: str = ""
    """The first word after the LLM's stall, in the turn that had one."""
    cut: bool = False
    heard: str = ""
    """What was heard of it where it was cut, as the LLM's context has it."""

    @property
    def cut_in(self) -> str:
        """What was heard of the chunk that it was cut in; empty where it was cut between two."""
        rest = " ".join(self.heard.split())
        for report in self.reports:
            written = " ".join(report.written.split())
            if not rest.startswith(written):
                break
            rest = rest.removeprefix(written).lstrip()
        return rest

    @property
    def seams(self) -> list[float]:
        """Where chunks begin, in seconds of the turn."""
        return [0.0, *np.cumsum([report.audio_s for report in self.reports]).tolist()]

    @property
    def stall_seams(self) -> list[float]:
        """Where the LLM's stall, and nothing else, explains a pause."""
        return [
            seam
            for seam, report in zip(self.seams, self.reports, strict=False)
            if self.stalled_before and report.written.lstrip().startswith(self.stalled_before)
        ]


@dataclass(frozen=True, slots=True)
class Recording:
    """What came out of the listener's device."""

    sound: NDArray[np.float32]
    """[n] at 24 kHz."""
    began: float
    """Wall clock of its first sample."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of a turn that was found in the recording."""

    said_s: float
    heard_s: float


@dataclass(slots=True)
class Findings:
    """All that is measured."""

    spots: dict[int, list[Spot]] = field(default_factory=dict[int, list[Spot]])
    gap_s: float = 0.0
    """The longest pause inside speech that the service did not put there."""
    gap_at_s: float = 0.0
    """Where, in seconds of the recording."""
    stall_s: float = 0.0
    """The pause that the LLM's stall made."""
    silence_s: float | None = None
    """From the caller's first sound to the agent's last."""


def play(arrivals: NDArray[np.float64], sounds: NDArray[np.int16]) -> Recording:
    """Play packets of 20 ms as a device would: held back a little, silence where one comes too late, caught up in pauses."""
    due = float(arrivals[0]) + JITTER_S
    began = due
    out: list[NDArray[np.float32]] = []
    quiet = 0
    for arrival, packet in zip(arrivals, sounds, strict=True):
        quiet = quiet + 1 if int(np.abs(packet.astype(np.int32)).max()) < 40 else 0
        if arrival > due:  # nothing to play until it comes
            out.append(np.zeros(int((arrival - due) * 48000), dtype=np.float32))
            due = float(arrival)
        elif due - arrival > 2 * JITTER_S and quiet > 15:
            continue  # late by an earlier pause: a long silence is shortened
        out.append(packet.astype(np.float32) / 32768.0)
        due += packet.size / 48000
    return Recording(np.asarray(soxr.resample(np.concatenate(out), 48000, RATE), dtype=np.float32), began)


def locate(said: Said, recording: Recording) -> list[Spot]:
    """Where 200 ms stretches of a turn are in the recording, by correlation; only where it is sure."""
    sound = np.frombuffer(bytes(said.sound), dtype="<i2").astype(np.float32) / 32768.0
    first = lag = int((said.began - recording.began) * RATE)
    reach = RATE
    spots: list[Spot] = []
    for start in range(0, sound.size - BLOCK, HOP):
        block = sound[start : start + BLOCK]
        if float(np.sqrt(np.mean(block**2))) < 2 * VOICE:
            continue
        found = _find(block, recording.sound, start + lag, (start + first - RATE // 10, start + first + reach))
        if found is None:
            continue
        lag = found - start
        if not spots:
            first, reach = lag, MOST_DELAY
        spots.append(Spot(start / RATE, found / RATE))
    return spots


def pauses(spots: list[Spot]) -> list[tuple[float, float, float]]:
    """Where the recording falls behind what was said: position in the turn, in the recording, seconds.

    A pause delays all that comes after it, so what counts is how far the least delay of the next 1.5 s is above the
    greatest of the 1.5 s before, both as medians of three: a vowel is sometimes found some of its periods away.
    """
    lags = np.array([spot.heard_s - spot.said_s for spot in spots])
    level = np.array([float(np.median(lags[max(at - 1, 0) : at + 2])) for at in range(len(lags))])
    said = np.array([spot.said_s for spot in spots])
    found: list[tuple[float, float, float]] = []
    for at in range(2, len(spots) - 2):
        before = level[(said > said[at] - 1.5) & (said < said[at])]
        after = level[(said >= said[at] + 0.05) & (said < said[at] + 1.5)]
        pause = float(after.min() - before.max()) if before.size and after.size else 0.0
        if pause > 0.002:
            found.append((spots[at].said_s, spots[at].heard_s, pause))
    return found


def _find(block: NDArray[np.float32], sound: NDArray[np.float32], near: int, between: tuple[int, int]) -> int | None:
    """Where the block is in the sound: where it is expected, if it is there to 2 ms, or else within bounds."""
    for low, high, enough in ((near - 48, near + 49, 0.93), (*between, 0.85)):
        low, high = max(low, 0), min(high + block.size, sound.size)
        if high - low < block.size:
            continue
        score = _likeness(block, sound[low:high])
        best = int(np.argmax(score))
        if score[best] >= enough:
            return low + best
    return None


def _likeness(block: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float64]:
    """Normalised correlation of the block with each place of the window."""
    size = 1 << (window.size + block.size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(window, size) * np.conj(np.fft.rfft(block, size)), size)
    energy = np.concatenate(([0.0], np.cumsum(window.astype(np.float64) ** 2)))
    power = np.sqrt(np.maximum(energy[block.size :] - energy[: -block.size], 1e-9) * float(np.sum(block**2)))
    return product[: window.size - block.size + 1] / power


def measure(turns: list[Said], recording: Recording, caller_at: float | None) -> Findings:
    """Everything that is measured in the recording."""
    findings = Findings()
    for said in turns:
        spots = findings.spots[said.turn] = locate(said, recording)
        for at_s, heard_s, pause in pauses(spots):
            if any(at_s - 1.0 <= seam <= at_s + 0.5 for seam in said.stall_seams):
                findings.stall_s = max(findings.stall_s, pause)
            elif pause > findings.gap_s:
                findings.gap_s, findings.gap_at_s = pause, heard_s
    if caller_at is not None:
        begin = int((caller_at - recording.began) * RATE)
        after_cut = [said.began for said in turns if said.began > caller_at]
        end = int((after_cut[0] - recording.began) * RATE) if after_cut else recording.sound.size
        stretch = recording.sound[max(begin, 0) : max(end, 0)]
        level = np.sqrt(np.mean(stretch[: stretch.size // 240 * 240].reshape(-1, 240) ** 2, axis=1))
        loud = np.flatnonzero(level > VOICE)
        findings.silence_s = float(loud[-1] + 1) * 0.01 if loud.size else 0.0
    return findings


def print_table(console: Console, turns: list[Said]) -> None:
    table = Table(title="What was generated", title_justify="left")
    table.add_column("turn", justify="right")
    table.add_column("chunk")
    for name in ("first sound", "RTF", "audio", "context"):
        table.add_column(name, justify="right")
    for said in turns:
        for report in said.reports:
            table.add_row(
                str(said.turn),
                report.written.strip(),
                f"{report.ttfa_s * 1000:.0f} ms",
                f"{report.total_s / report.audio_s:.2f}" if report.audio_s else "-",
                f"{report.audio_s:.1f} s",
                f"{report.exchanges} exchange{'s' if report.exchanges != 1 else ''}",
            )
        if said.cut:
            after = f" after: {said.cut_in} …" if said.cut_in else ""
            table.add_row(str(said.turn), f"[italic]cut by the caller[/italic]{after}", "", "", "", "")
    console.print(table)


def draw(
    path: Path,
    turns: list[Said],
    recording: Recording,
    findings: Findings,
    contexts: list[tuple[float, int, float]],
    caller: tuple[float, float] | None,
) -> None:
    """The recording, its chunks, the context, the barge-in. `contexts`: wall clock, exchanges, seconds of audio."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, low) = plt.subplots(2, 1, figsize=(16, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    step = RATE // 500
    sound = recording.sound[: recording.sound.size // step * step].reshape(-1, step)
    times = np.arange(sound.shape[0]) * step / RATE
    top.fill_between(times, sound.min(axis=1), sound.max(axis=1), linewidth=0, color="#345")
    colours = ("#dde8f4", "#eef4dd")
    for said in turns:
        spots = findings.spots.get(said.turn, [])
        if not spots:
            continue
        seams = [*said.seams]
        total = len(said.sound) / 2 / RATE
        if total > seams[-1] + 0.1:
            seams.append(total)
        for place, (begin, end) in enumerate(pairwise(seams)):
            inside = [spot for spot in spots if begin - 0.1 <= spot.said_s < end]
            if not inside:
                continue
            left = inside[0].heard_s - (inside[0].said_s - begin)
            right = inside[-1].heard_s + BLOCK / RATE
            top.axvspan(left, right, color=colours[place % 2], zorder=0)
            cut = f"{said.cut_in} … (cut)" if said.cut_in else "(cut)"
            text = said.reports[place].written.strip() if place < len(said.reports) else cut
            fits = int((right - left) / recording.sound.size * RATE * CAPTION)
            lines = textwrap.fill(text, max(fits, 8), max_lines=4, placeholder=" …")
            top.text(left + 0.03, 0.98, lines, fontsize=7, va="top", transform=top.get_xaxis_transform())
    if caller is not None:
        begin = caller[0] - recording.began
        top.axvspan(begin, begin + caller[1], ymax=0.08, color="#d33", zorder=1)
        top.axvline(begin, color="#d33")
        top.text(begin + 0.05, 0.1, "the caller speaks", color="#d33", fontsize=8, transform=top.get_xaxis_transform())
        if findings.silence_s is not None:
            top.axvline(begin + findings.silence_s, color="#d33", linestyle=":")
    top.set_ylabel("what the listener hears")
    loudest = max(float(np.abs(recording.sound).max()), 0.1)
    top.set_ylim(-1.4 * loudest, 2.0 * loudest)
    clock = [item[0] - recording.began for item in contexts]
    low.step(clock, [item[2] for item in contexts], where="post", color="#345")
    low.set_ylabel("s in the window")
    other = low.twinx()
    other.step(clock, [item[1] for item in contexts], where="post", color="#a60")
    other.set_ylabel("exchanges", color="#a60")
    low.set_xlabel("seconds")
    low.set_xlim(0, recording.sound.size / RATE)
    figure.savefig(path, dpi=110)
    plt.close(figure)
