"""Stage 7, the language model: text and codes so far -> the next row of codes.

A Higgs v2 of six layers trained on conversations from nothing. Three things beside the usual loss make it learn to read
within an hour on two cores:

- guided attention: in three layers one head is told which letter each frame speaks, and in two a second head is told to
  look LOOKAHEAD letters further, where a causal text side already knows what comes after the letter;
- at that further place a small auxiliary head must name the phonemes the letter stands for, on the speech's own texts and
  on many more (stage 2b), so that spelling is learned from text alone;
- another one must name the phoneme of each frame from the audio side's state.

And three make it hold two speakers apart, where conversations of two voices alone did not: a head is told to look from
each row, and from each letter of a description, at the number of its speaker; another from the first rows of a turn at
what was said and heard of that speaker before; and from there the voice must be named.

The auxiliary heads are dropped at export. The forward pass below is the transformers class's own arithmetic on its own
weights (a test holds the two against each other), with text and audio tokens apart and only the needed attention rows
looked at.

    python -m training.model --to 4000 --length 768 --batch 6
    python -m training.model --to 5000 --length 2048 --batch 2 --rate-to 0.05
    python -m training.model --to 9000 --length 2048 --batch 16 --device cuda --workers 8     # on a GPU

Each call goes on from the last checkpoint `model.pt`. Everything drawn at a step follows from MODEL_SEED and the step.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from training.conversations import IGNORE, VOICE_WEIGHT, Batch, batches, tokenizer
from training.settings import CODEBOOK_SIZE, CODEBOOKS, MODEL_SEED, STREAM_BOS, STREAM_EOS, WORK

LAYERS, HIDDEN, HEADS, INNER = 6, 256, 4, 768
GUIDED = ((1, 0, 0), (2, 0, 0), (3, 1, 1), (4, 0, 0), (4, 1, 1))  # layer, head, 1 if it looks LOOKAHEAD further
SPELLING_LAYER = 2  # after this layer the text side knows the phonemes
PHONEME_LAYER = 4  # after this one the audio side knows its phoneme
TAG_HEAD = (1, 1)  # layer, head: rows look at their speaker's number
TURN_HEAD = (3, 0)  # the first rows of a turn look at what was said and heard of their speaker
VOICE_LAYER = 4  # after this one they know the voice
LEVEL_WEIGHT = torch.tensor([8, 4, 2, 1.5, 1, 1, 0.75, 0.75]) / 19.0
GUIDE_WEIGHT, SPELLING_WEIGHT, PHONEME_WEIGHT = 0.1, 0.3, 0.2
TAG_WEIGHT, TURN_WEIGHT, VOICE_NAME_WEIGHT = 0.1, 0.1, 0.2
NOISE = 0.08  # share of the codes heard that are another row's; those to be predicted stay


# ---------------------------------------------------------------- model


def config(vocabulary: int) -> HiggsAudioV2Config:
    """The architecture, in the hub's own fields."""
    return HiggsAudioV2Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        codebook_size=CODEBOOK_SIZE + 2,
        num_codebooks=CODEBOOKS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=5,
        audio_bos_token_id=6,
        audio_token_id=7,
        audio_delay_token_id=8,
        audio_stream_bos_id=STREAM_BOS,
        audio_stream_eos_id=STREAM_EOS,
    )


class Trainee(nn.Module):
    """The checkpoint's model and the auxiliary heads that only training needs."""

    def __init__(self, vocabulary: int, sounds: int, phones: int) -> None:
        super().__init__()
        self.higgs = HiggsAudioV2ForConditionalGeneration(config(vocabulary))
        self.spelling_head = nn.Linear(HIDDEN, sounds)
        self.phoneme_head = nn.Linear(HIDDEN, phones)
        self.voice_head = nn.Linear(HIDDEN, len(VOICE_WEIGHT))

    def states(
        self,
        ids: Tensor,
        audio: Tensor,
        rows: Tensor | None,
        asked: Sequence[tuple[int, int, Tensor]] = (),
        layers: int = LAYERS,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The state after each layer, flat [B * L, D], and log attention [B, G, L] for each (layer, head, places [B, G])."""
        model = self.higgs.model
        size, length = ids.shape
        text = torch.ones(size * length, dtype=torch.bool)
        text[audio] = False
        words = text.nonzero()[:, 0]
        x = model.embed_tokens(ids).view(-1, HIDDEN)
        if rows is not None:
            x = x.index_copy(0, audio, model.embed_audio_tokens(rows[None])[0])
        cos, sin = model.rotary_emb(x, torch.arange(length)[None])

        def split(
            value: Tensor, text_part: nn.Module, audio_part: nn.Module, after: tuple[nn.Module, nn.Module] | None = None
        ) -> Tensor:
            spoken, written = audio_part(value[audio]), text_part(value[words])
            if after:
                spoken, written = after[1](spoken), after[0](written)
            return (
                torch.zeros_like(value, dtype=written.dtype).index_copy(0, audio, spoken).index_copy(0, words, written)
            )

        def rotate(value: Tensor) -> Tensor:
            value = value.view(size, length, HEADS, -1).transpose(1, 2)
            half = torch.cat((-value[..., HIDDEN // HEADS // 2 :], value[..., : HIDDEN // HEADS // 2]), -1)
            return value * cos[:, None] + half * sin[:, None]

        states: list[Tensor] = []
        looks: dict[int, Tensor] = {}
        for number, layer in enumerate(model.layers[:layers]):
            normed = split(x, layer.input_layernorm, layer.audio_input_layernorm)
            attention = layer.self_attn
            v = attention.v_proj(normed).view(size, length, HEADS, -1).transpose(1, 2)
            q, k = (rotate(project(normed)).to(v.dtype) for project in (attention.q_proj, attention.k_proj))
            heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + attention.o_proj(heard.transpose(1, 2).reshape(size * length, HIDDEN))
            for n, (_, head, places) in ((n, entry) for n, entry in enumerate(asked) if entry[0] == number):
                queries = q[:, head].gather(1, places[..., None].expand(-1, -1, HIDDEN // HEADS))
                scores = (queries @ k[:, head].transpose(1, 2)).float() * attention.scaling
                future = torch.arange(length) > places[..., None]
                looks[n] = scores.masked_fill(future, -1e9).log_softmax(-1)
            x = x + split(
                x,
                layer.post_attention_layernorm,
                layer.audio_post_attention_layernorm,
                (layer.mlp, layer.audio_mlp),
            )
            states.append(x)
        return states, [looks[n] for n in range(len(asked))]

    def losses(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the loss on conversations; `codes` [8] is by codebook. `noise`: see `misheard`."""
        heard = batch.rows if noise is None else torch.where(noise >= 0, noise, batch.rows)
        tagged, turns = batch.tagged.clamp(min=0), batch.turns.clamp(min=0)
        asked = [(layer, head, batch.guided) for layer, head, _ in GUIDED]
        states, looks = self.states(batch.ids, batch.audio, heard, [*asked, (*TAG_HEAD, tagged), (*TURN_HEAD, turns)])
        final = self.higgs.model.norm(states[-1][batch.audio - 1])
        logits = self.higgs.audio_lm_head(final).view(-1, CODEBOOKS, CODEBOOK_SIZE + 2).float()
        target = batch.rows.masked_fill(batch.rows == STREAM_BOS, IGNORE)
        codes = [F.cross_entropy(logits[:, q], target[:, q], ignore_index=IGNORE) for q in range(CODEBOOKS)]
        length = batch.ids.shape[1]
        told = batch.guide[..., 0] >= 0
        guide = []
        for look, (_, _, further) in zip(looks[: len(GUIDED)], GUIDED, strict=True):
            around = (batch.guide[..., further].clamp(min=1)[..., None] + torch.arange(-1, 3 - further)).clamp(
                max=length - 1
            )
            guide.append(-look.gather(2, around).logsumexp(-1)[told].mean())
        first = torch.arange(len(batch.ids))[:, None] * length  # flat index of each sequence
        phoneme = self.phoneme_head(F.rms_norm(states[PHONEME_LAYER][(first + batch.guided).view(-1)], (HIDDEN,)))
        at_tag = looks[-2].gather(2, batch.tag.clamp(min=0)[..., None])[..., 0]
        at_known = looks[-1].masked_fill(~batch.known, -1e9).logsumexp(-1)
        voice = self.voice_head(F.rms_norm(states[VOICE_LAYER][(first + turns).view(-1)], (HIDDEN,))).float()
        voices = batch.voices.view(-1)
        begun = batch.turns >= 0
        any_tag, any_turn = (batch.tagged >= 0).sum().clamp(min=1), begun.sum().clamp(min=1)  # a batch may have none
        return {
            "tag": -torch.where(batch.tagged >= 0, at_tag, 0).sum() / any_tag,
            "turn": -torch.where(begun, at_known, 0).sum() / any_turn,
            "voice": F.cross_entropy(voice, voices, ignore_index=IGNORE, reduction="sum") / any_turn,
            "codes": torch.stack(codes),
            "guide": torch.stack(guide),
            "phoneme": F.cross_entropy(phoneme.float(), batch.phones.view(-1), ignore_index=IGNORE),
            "spelling": self.spelling_loss(states[SPELLING_LAYER], batch.sound_at, batch.sounds),
            "right": (logits[:, 0].argmax(-1) == target[:, 0])[target[:, 0] != IGNORE].float().mean(),
        }

    def spelling_loss(self, state: Tensor, at: Tensor, sounds: Tensor) -> Tensor:
        """How well the phonemes of letters are named from the states at their look-ahead places."""
        return F.cross_entropy(self.spelling_head(F.rms_norm(state[at], (HIDDEN,))).float(), sounds)


def misheard(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [A, 8] to be heard in place of `rows`, -1 where those stay.

    A model that hears nothing but true codes learns to go on from them by heart instead of reading; and what it says itself is
    never quite a true code. So some of them are those of another row.
    """
    others = rows[torch.randperm(len(rows), generator=generator, device=rows.device)]
    wrong = torch.rand(rows.shape, generator=generator, device=rows.device) < NOISE
    return torch.where(wrong & (rows < CODEBOOK_SIZE) & (others < CODEBOOK_SIZE), others, -1)


# ---------------------------------------------------------------- optimiser


def orthogonalized(stack: Tensor) -> Tensor:
    """Matrices [K, m, n] with their singular values drawn to one (Newton-Schulz, as in Muon by Keller Jordan)."""
    x = stack.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimizer:
    """Muon for the layers' matrices, AdamW for embeddings, heads and norms."""

    def __init__(self, trainee: Trainee) -> None:
        layers = list(trainee.higgs.model.layers.parameters())
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in layers:
            if parameter.ndim == 2:
                shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(shapes.values())
        self.momentum = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        inside = {id(parameter) for group in self.groups for parameter in group}
        rest = [parameter for parameter in trainee.parameters() if id(parameter) not in inside]
        self.adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float, muon: float = 0.02, adam: float = 0.002) -> None:
        """One update; `rate` scales both learning rates."""
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonalized(gradient.lerp_(momentum, 0.95))
            scale = rate * muon * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            with torch.no_grad():
                for parameter, change in zip(group, update, strict=True):
                    parameter.mul_(1 - rate * muon * 0.01).add_(change, alpha=-scale)
        for settings in self.adam.param_groups:
            settings["lr"] = rate * adam
        self.adam.step()

    def state(self) -> dict[str, object]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, object]) -> None:
        self.momentum = state["momentum"]  # pyright: ignore[reportAttributeAccessIssue]
        self.adam.load_state_dict(state["adam"])  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- training


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, required=True, help="the step to train up to")
    parser.add_argument("--length", type=int, default=768, help="tokens of a conversation")
    parser.add_argument("--batch", type=int, default=6, help="conversations of a step")
    parser.add_argument("--rate-from", type=float, default=1.0, help="scale of the learning rate at the start")
    parser.add_argument("--rate-to", type=float, default=1.0, help="and at the end, on a line between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--compile", action="store_true", help="a step by torch.compile: quicker, wants a C++ compiler")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw conversations; on a GPU one a core")
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_default_device(device)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(MODEL_SEED)
    names = json.loads((WORK / "align.json").read_text())
    letters = tokenizer()
    trainee = Trainee(len(letters), len(names["sounds"]) + 1, len(names["phones"]))
    average = {name: value.clone() for name, value in trainee.state_dict().items()}
    optimizer, path, start = Optimizer(trainee), WORK / "model.pt", 0
    if path.exists():
        saved = torch.load(path, map_location=device)
        trainee.load_state_dict(saved["weights"])
        optimizer.restore(saved["optimizer"])
        average, start = saved["average"], saved["step"]
    weights = LEVEL_WEIGHT.to(device)
    losses_of, states_of = trainee.losses, trainee.states
    if arguments.compile:
        losses_of, states_of = (torch.compile(each, dynamic=True) for each in (losses_of, states_of))
    noises = torch.Generator(device)
    begun, seen, shown = time.time(), 0, {}
    steps = range(start, arguments.to)
    drawn = batches(steps, arguments.batch, arguments.length, arguments.workers)
    for step in steps:
        with torch.device("cpu"):
            batch = next(drawn)
        batch = batch.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            losses = losses_of(batch, misheard(batch.rows, noises.manual_seed(MODEL_SEED + step)))
            ids, at, sounds = batch.spelled
            state = states_of(ids, torch.zeros(0, dtype=torch.long), None, (), SPELLING_LAYER + 1)[0][-1]
            losses["read"] = trainee.spelling_loss(state, at, sounds)
        loss = (losses["codes"] * weights).sum() + GUIDE_WEIGHT * losses["guide"].sum()
        loss = loss + SPELLING_WEIGHT * (losses["spelling"] + losses["read"]) + PHONEME_WEIGHT * losses["phoneme"]
        loss = loss + TAG_WEIGHT * losses["tag"] + TURN_WEIGHT * losses["turn"] + VOICE_NAME_WEIGHT * losses["voice"]
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        share = (step - start) / max(1, arguments.to - start)
        rate = arguments.rate_from + (arguments.rate_to - arguments.rate_from) * share
        optimizer.step(rate * min(1.0, (step + 1) / 100))
        trainee.zero_grad()
        seen += batch.ids.numel()
        if step % 4 == 0:
            keep = min(0.98, 1 - 1 / (step / 40 + 1))
            for name, value in trainee.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - keep)
        for name, value in losses.items():
            shown[name] = value.detach() if name not in shown else shown[name].lerp(value.detach(), 0.05)
        if step % 20 == 0 or step == arguments.to - 1:
            line = {name: [round(x, 2) for x in value.view(-1).tolist()] for name, value in shown.items()}
            speed = seen / (time.time() - begun)
            print(f"{step} {time.time() - begun:.0f}s {speed:.0f} tokens/s rate {rate:.2f} {line}", flush=True)
        if step % 50 == 49 or step == arguments.to - 1:
            state = {
                "weights": trainee.state_dict(),
                "average": average,
                "optimizer": optimizer.state(),
                "step": step + 1,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")


if __name__ == "__main__":
    main()
