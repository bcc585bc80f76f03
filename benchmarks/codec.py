"""What sound costs: the codec's decoder, piece by piece and as a stream, against decoding everything at once.

For pieces of several sizes in the middle of an utterance (10 frames of context on both sides): milliseconds of wall clock and
of one core's time, ours and by decoding the whole window with transformers and cutting the piece out. For a stream that gets one
frame at a time: the real-time factor (seconds of work for a second of sound). That is CPU time on a CPU, and the wall clock on a GPU,
where pieces of streams are captured first and all work is waited for.

    python benchmarks/codec.py [--codec FOLDER] [--device cpu] [--threads 1] [--repeats 9] [--sessions 4] [--frames 125]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Place, emit
from numpy.typing import NDArray
from transformers import HiggsAudioV2TokenizerModel

import higgs_voice
from higgs_voice.audio import FRAME_RATE, HOP
from higgs_voice.codec import Decoder
from higgs_voice.model.loading import pick_device

NANO = Path(higgs_voice.__file__).parent / "nano" / "codec"
SIZES = (1, 2, 4, 8, 12, 16, 25, 50)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float, float]:
    """Milliseconds: wall p50, wall p95, and the median of this process' CPU time."""
    work()
    synchronize(device)
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(repeats):
        before, used = time.perf_counter(), time.process_time()
        work()
        synchronize(device)
        wall.append(time.perf_counter() - before)
        cpu.append(time.process_time() - used)
    return float(np.percentile(wall, 50)) * 1e3, float(np.percentile(wall, 95)) * 1e3, float(np.median(cpu)) * 1e3


def stream(decoder: Decoder, codes: list[NDArray[np.int16]]) -> list[list[NDArray[np.float32]]]:
    """The pieces of several utterances that get one frame at a time, together."""
    streams = [decoder.open() for _ in codes]
    pieces: list[list[NDArray[np.float32]]] = [[] for _ in codes]
    for frame in range(codes[0].shape[1] + 1):
        for each, row in zip(streams, codes, strict=True):
            if frame == row.shape[1]:
                each.finish()
            else:
                each.push(row[:, frame : frame + 1])
        while any(each.ready for each in streams):
            for place, sound in enumerate(decoder.decode_ready(streams)):
                if sound.size:
                    pieces[place].append(sound)
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--codec", type=Path, default=NANO)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--frames", type=int, default=125, help="of an utterance")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    clock, name = (0, "wall clock") if on_gpu else (2, "CPU time")  # of what `timed` gives, what the work takes
    network: Any = HiggsAudioV2TokenizerModel.from_pretrained(args.codec, dtype=torch.float32)
    codec: HiggsAudioV2TokenizerModel = network.to(device).eval()
    decoder = Decoder(codec)
    decoder.warm_up(args.sessions)
    rng = np.random.default_rng(0)
    codes = [
        rng.integers(0, decoder.codebook_size, (decoder.num_codebooks, args.frames), dtype=np.int16)
        for _ in range(args.sessions)
    ]
    place = Place.here()
    print("\n".join(place.lines()))
    print(f"device {device}; codec {args.codec.name}, {args.repeats} repeats")

    def windowed(frames: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            window = torch.from_numpy(codes[0][None, :, : frames + 2 * decoder.reach].astype(np.int64)).to(device)
            sound = codec.decode(window, return_dict=False)[0, 0].cpu().numpy()
        return sound[decoder.reach * HOP : (decoder.reach + frames) * HOP]

    def piece(frames: int) -> NDArray[np.float32]:
        begin, end = decoder.reach, decoder.reach + frames
        return decoder.decode(codes[0][:, : end + decoder.reach], begin, end)

    result: dict[str, object] = {"pieces": {}}
    print(f"{'frames':>7}{'wall p50':>10}{'p95':>8}{'cpu':>8}{'rtf':>8}   window of transformers: {name}, rtf")
    for frames in (size for size in SIZES if size + 2 * decoder.reach <= args.frames):
        ours = timed(lambda frames=frames: piece(frames), args.repeats, device)
        other = timed(lambda frames=frames: windowed(frames), max(3, args.repeats // 3), device)
        length = frames * 1000 / FRAME_RATE
        print(
            f"{frames:>7}{ours[0]:>10.1f}{ours[1]:>8.1f}{ours[2]:>8.1f}{ours[clock] / length:>8.3f}"
            f"{other[clock]:>20.1f}{other[clock] / length:>8.3f}"
        )
        measured = {"p50_ms": ours[0], "p95_ms": ours[1], "cpu_ms": ours[2]}
        window = {"window_p50_ms": other[0], "window_cpu_ms": other[2]}
        result["pieces"][str(frames)] = measured | window  # pyright: ignore[reportIndexIssue]

    seconds = codes[0].shape[1] / FRAME_RATE

    def factor(work: Callable[[], object]) -> float:
        return timed(work, 3, device)[clock] / 1e3 / seconds

    with torch.inference_mode():
        tensor = torch.from_numpy(codes[0].astype(np.int64))[None].to(device)
        whole = factor(lambda: codec.decode(tensor, return_dict=False))
    at_once = factor(lambda: decoder.decode(codes[0]))
    alone = factor(lambda: stream(decoder, codes[:1]))
    together = factor(lambda: stream(decoder, codes)) / args.sessions

    def begin() -> None:
        fresh = decoder.open()
        fresh.push(codes[0][:, :7])
        fresh.pull()

    first_ms = timed(begin, args.repeats, device)
    print(f"real-time factor ({name}): whole by transformers {whole:.3f}, whole {at_once:.3f}, streamed {alone:.3f}, ")
    print(
        f"  streamed with {args.sessions} sessions {together:.3f} each; first piece {first_ms[0]:.1f} ms wall, {first_ms[2]:.1f} ms CPU"
    )
    result |= {"device": str(device), "rtf_by": name}
    result |= {"rtf": {"transformers": whole, "whole": at_once, "streamed": alone, "streamed_batched": together}}
    result |= {"first_piece_ms": {"p50": first_ms[0], "p95": first_ms[1], "cpu": first_ms[2]}}
    print(emit("codec", place, result))


if __name__ == "__main__":
    main()
