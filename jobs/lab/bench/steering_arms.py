"""The arms of the steering bench: published methods, controls and ours, as policies that differ only in their rung."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace

from pipeline.methods import register
from pipeline.policy import Policy
from pipeline.settings import from_dict

STEPS = 20
BUDGET = 80.0  # denoiser evaluations per request in every arm: the first picture and three more
MOST = 8  # attempts; the budget ends a request earlier
OBSERVED = "\n".join(f'[{guard}]\naction = "observe"' for guard in ("marks", "codes", "text"))  # copies alone are steered
UNSAFE = "[unsafe]\nenabled = false\nrequired = false"


@dataclass(frozen=True)
class Arm:
    """One way of steering.

    Attributes:
        name: in the tables.
        rung: TOML of its rung, repeated while the budget lasts; empty: no steering.
        where: the paper it follows, or what it controls for.
    """

    name: str
    rung: str
    where: str = ""

    def policy(self) -> Policy:
        """The default guards with marks only observed, and this rung for every attempt."""
        from jobs.lab.steering import amg, delayed, prompt, spell

        for module in (amg, delayed, prompt, spell):
            register(module.METHOD)
        once = [f"[[ladder]]\n{self.rung}"] if self.rung else []
        # The same noise with the same steering gives the same picture: later attempts start from new noise, as re-seeding does.
        again = "" if 'kind = "re' in self.rung else "\nrenew = true"
        text = "\n".join([f"max_evals = {BUDGET}", OBSERVED, UNSAFE, *once, *[rung + again for rung in once] * (MOST - 1)])
        return replace(from_dict(Policy, tomllib.loads(text), where=f"arm {self.name}"), name=self.name)


NEGTOME = 'kind = "negtome"\nform = "kernel"\nalpha = 2.0\ntoken_threshold = 0.5\nmasked = true\nattention = "both"'
GENTLE = (
    'kind = "negtome"\nform = "kernel"\nalpha = 3.0\ntoken_threshold = -0.5\nmasked = true\nattention = "both"\n'
    'rows = "conditional"\nwindow = 0.3'
)
RANDOM = '\ntarget = "random"'

# A published method has its paper's strength where that applies here, otherwise the best of a few tried.
ARMS = (
    Arm("none", ""),
    Arm("re-seed", 'kind = "reseed"', "control: best of N"),
    Arm("re-noise only", 'kind = "renoise"\nresume_fraction = 0.3\nrollback = 0.15', "control: rollback without steering"),
    Arm("negative prompt", 'kind = "negative"', "the nearest reference's title"),
    Arm("delayed CFG", 'kind = "delayed_cfg"\nwindow = 0.5', "arXiv 2411.16738"),
    Arm("prompt optimisation", 'kind = "prompt"\niterations = 10\nnorm_target = 0.0', "arXiv 2407.21720"),
    Arm("AMG", 'kind = "amg"\nstrength = 5.0\nenough = 0.5\niterations = 5', "arXiv 2404.00922"),
    Arm("SPELL", 'kind = "spell"\nradius = 1.5\nreferences = 3', "arXiv 2410.06025"),
    Arm(
        "NegToMe, released",
        'kind = "negtome"\nmatch = "released"\nplacement = "released"\nkeep_norm = false\nnoise = "none"\nattention = "both"',
        "arXiv 2412.01339, its code: α .9, τ .65",
    ),
    Arm("NegToMe, paper", 'kind = "negtome"\nkeep_norm = false\nattention = "both"', "arXiv 2412.01339: α .9, τ .65"),
    Arm("NegToMe, ours", NEGTOME, "push grows with the similarity; foreground only; norms kept"),
    Arm("NegToMe, ours, random reference", NEGTOME + RANDOM, "control"),
    Arm("NegToMe, conditional row", GENTLE, "the ladder's fourth rung: that row and the first third of the steps alone"),
    Arm("NegToMe, conditional row, random reference", GENTLE + RANDOM, "control"),
    Arm(
        "nudging, literal",
        'kind = "nudge"\nsolver = "closed_form"\nnormalise = "none"\nweights = "mean"\nkeep = 4.0\ncentred = false',
        "arXiv 2408.15450, closed form of the printed objective",
    ),
    Arm("nudging, all steps", 'kind = "nudge"\nenough = 0.5\niterations = 20', "gated, cosine; until the last step"),
    Arm("nudging, ours", 'kind = "nudge"\nenough = 0.5\niterations = 20\nwindow = 0.35', "the same in the first third alone"),
    Arm(
        "nudging, ours, random direction",
        'kind = "nudge"\nenough = 0.5\niterations = 20\nwindow = 0.35\ndirection = "random"',
        "control: as far, anywhere",
    ),
    Arm(
        "nudging, embedder's space",
        'kind = "nudge"\nspace = "embedder"\nenough = 0.5\niterations = 5\npull = 1.0\nwindow = 0.35',
        "gradient through decoder and embedder, pull to the caption",
    ),
)  # fmt: skip
