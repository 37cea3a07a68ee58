"""Notes: what a run does differently from what its files let a reader expect, collected before it draws.

:data:`TOPICS` is the reference's table.
"""

from __future__ import annotations

from dataclasses import dataclass

TOPICS: dict[str, str] = {
    "C2PA": "who signs the pictures' manifests, and who trusts that certificate",
    "adapters": "an adapter, a word or a row that has no effect",
    "cache": "what is fetched from an object store, and kept",
    "calibration": "the index has changed since its threshold was calibrated",
    "copies": "nothing is protected, or copies are found less surely than the policy lets expect",
    "device": "the machine has a GPU that is not used",
    "diversity": "requests that are drawn without all of their group",
    "dtype": "another number format would be faster, or the weights are stored in another",
    "early": "probes look in another way than the policy says",
    "folder": "the run folder's place",
    "generation": "steps and guidance that the run file leaves open",
    "guards": "a guard that is left out or only observes",
    "guidance": "a guidance that has no effect",
    "keep": "`keep.hard_stop` keeps other pictures than usual",
    "keys": "who else may read the folder of keys",
    "marks": "pictures are exported with fewer marks than their run gave them",
    "memory": "what takes more memory than usual, or was not counted",
    "model": "parts of the model's folder, or tensors in it, that are not used",
    "policy": "a safeguard of the policy that does not act, or acts otherwise than it reads",
    "preset": "a few-step model, and how it is drawn",
    "prompts": "how the prompt files are read, and what is odd in them",
    "resume": "there is no run to continue",
    "safety checker": "the folder's is not loaded; whether Clearance's own guard is on",
    "scheduler": "the model's folder names one that Clearance does not have",
    "variant": "weights of the wanted variant that are not there",
    "watermark": "the published key marks the pictures, because the run has none of its own",
}


@dataclass(frozen=True, order=True)
class Note:
    """One thing worth knowing that stops nothing.

    Attributes:
        topic: what it is about, one of :data:`TOPICS`.
        text: a sentence for people.
    """

    topic: str
    text: str
