"""flite, Debian's speech synthesiser, in this process: speech and the times of its phonemes.

Calling the library is twice as fast as starting the program `flite -psdur` for each sentence, and gives the same speech.
"""

import ctypes
from functools import cache

import numpy as np


class _Wave(ctypes.Structure):
    """flite's cst_wave."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


@cache
def _library() -> ctypes.CDLL:
    flite = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
    for name in ("usenglish", "cmulex"):
        ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
    signatures = {
        "flite_synth_text": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
        "utt_relation": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
        "relation_head": (ctypes.c_void_p, [ctypes.c_void_p]),
        "item_next": (ctypes.c_void_p, [ctypes.c_void_p]),
        "item_feat_string": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_char_p]),
        "item_feat_float": (ctypes.c_float, [ctypes.c_void_p, ctypes.c_char_p]),
        "utt_wave": (ctypes.POINTER(_Wave), [ctypes.c_void_p]),
        "delete_utterance": (None, [ctypes.c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(flite, name)
        function.restype, function.argtypes = result, arguments
    flite.flite_init()
    return flite


@cache
def _voice(name: str) -> int:
    _library()
    register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    return register(None)


def synthesize(text: str, voice: str) -> tuple[np.ndarray, int, list[tuple[str, float]]]:
    """Speech [n] int16, its sample rate, and each phoneme's name with its end in seconds."""
    flite, phones = _library(), []
    utterance = flite.flite_synth_text(text.encode("ascii", "ignore"), _voice(voice))
    try:
        item = flite.relation_head(flite.utt_relation(utterance, b"Segment"))
        while item:
            phones.append((flite.item_feat_string(item, b"name").decode(), flite.item_feat_float(item, b"end")))
            item = flite.item_next(item)
        wave = flite.utt_wave(utterance).contents
        audio = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
        return audio, wave.sample_rate, phones
    finally:
        flite.delete_utterance(utterance)
