"""The kinds of events: one line each, with when it is written. The reference's table is made from here.

An event of another kind (written by another version, or by a program of somebody else) is part of the chain, changes no state,
and is named by ``clearance verify``.
"""

from __future__ import annotations

KINDS: dict[str, str] = {
    "run.started": "the first worker is ready; with the digest of `plan.json`, and of the plan whose place it took",
    "run.noted": "the run does something differently from what its files let a reader expect; with topic and sentence",
    "run.resumed": "a stopped run continues; with the number of open shards",
    "run.stopped": "the run had to stop; with the error or the signal",
    "run.ended": "a person ended a stopped run as it is; with how many requests and shards were not drawn",
    "run.error_rate": "more requests ended as errors than `max_error_rate` allows; with the counts",
    "run.finished": "every shard is committed",
    "run.sealed": "`run.json` was written; with its digest",
    "run.signed": "`run.json` was signed; with the id of the key, and the digest of `run.dsse.json`",
    "run.stamped": "an authority stamped the run; with the digest of its answer, and of the file that it is over",
    "run.compacted": "the files of the run's shards became few large parts; with the digest of `parts/index.parquet`",
    "run.reported": "a report was written; with the digests of `report.html` and `report.json`",
    "shard.retried": "a worker died, and its shard was given to another",
    "shard.given_up": "the shard cost as many workers as it may (three, or ten machines); its requests became error rows",
    "run.worker_lost": "a worker died without a shard: it loaded its models, or had just committed",
    "review.exported": "samples were handed to people who review them",
    "review.decided": "a person decided about samples; `outcome` is in force from then on",
    "takedown.applied": "a claim was carried out; with the references that it added or retired",
    "reaudit.done": "samples were compared again, with other references, another threshold or another policy",
    "sample.quarantined": "samples are held back until they are released",
    "sample.released": "the quarantine of samples ends; with `outcome`, that one is in force",
    "payload.erased": "pictures, prompts or embeddings of samples were erased; with each file's digest before and after",
    "hold.set": "a legal hold: of these samples, or of the whole run, nothing may be erased",
    "hold.lifted": "a legal hold ends",
    "retention.applied": "what was kept longer than the retention allows was erased; with counts",
    "policy.changed": "for programs of your own, Clearance writes none: another policy is in force; with both digests",
    "index.changed": "for programs of your own, Clearance writes none: references changed; with the index before and after",
}
