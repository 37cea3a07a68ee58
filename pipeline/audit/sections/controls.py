"""Where a record answers to what frameworks ask for: a table, not a claim of conformity.

NIST AI 600-1 (July 2024): suggested actions, in our own words. ISO/IEC 42001:2023: controls of Annex A, in our own words.
ISO/IEC DIS 24970:2025: clauses as public summaries of the draft name them; the draft's own text may change.
"""

from __future__ import annotations

CONTROLS: tuple[tuple[str, str, str, str, str], ...] = (
    # framework, clause, what it asks for, section of the report, where it is in the record
    (
        "NIST AI 600-1",
        "MS-2.8-001",
        "Statistics on policy violations, takedown requests and infringement",
        "copies results claims",
        "findings, decision, reason; events takedown.applied, reaudit.done",
    ),
    (
        "NIST AI 600-1",
        "MS-2.8-003",
        "A tamper-evident history of each generated, modified or shared item",
        "verify marks",
        "prev_sha256, record_sha256, file_sha256; run.json; XMP, watermark, C2PA",
    ),
    (
        "NIST AI 600-1",
        "GV-1.6-003",
        "Inventory: provenance of data, known issues, human roles, rights in works, models and versions",
        "models references policy people",
        "model_id, model_digest, model_licence, rights_basis, index_id, policy_sha256; events review.decided",
    ),
    (
        "ISO/IEC 42001",
        "A.6.2.7",
        "Technical documentation of the system for those who need it",
        "models policy method training",
        "run.json (plan, configuration, policy, guards, bill of materials)",
    ),
    (
        "ISO/IEC 42001",
        "A.6.2.8",
        "Recording of event logs, at least while the system is in use",
        "method people claims",
        "the events table; one row in samples for every request",
    ),
    (
        "ISO/IEC 42001",
        "A.7.5",
        "Provenance of the data over the life of the system",
        "training references marks",
        "prompt_commit, base_seed, model_digest, index_id, digital_source_type, sample_id",
    ),
    (
        "ISO/IEC DIS 24970",
        "5 Logging and use of logs",
        "Relevant events are logged, for a stated purpose",
        "method",
        "samples, attempts and events: every request ends as one row",
    ),
    (
        "ISO/IEC DIS 24970",
        "6 Design of the logging system",
        "Entries can be traced to design, data and governance",
        "policy models verify",
        "policy_sha256, plan_sha256, index_id, calibration_id, schema_version, record_sha256",
    ),
    (
        "ISO/IEC DIS 24970",
        "7 Triggers for logging",
        "Normal and exceptional behaviour trigger an entry",
        "exceptions results",
        "findings (triggered or not), caught, skipped_guards, error_class; events shard.given_up, run.resumed",
    ),
    (
        "ISO/IEC DIS 24970",
        "8 Information to be logged",
        "Time, input, output, reference data, result, people",
        "entries people",
        "started_at, finished_at, prompt_commit, pixel_sha256, nearest, decision; events actor, person",
    ),
)


def controls() -> list[dict[str, object]]:
    """The table as plain data."""
    names = ("framework", "clause", "asks", "sections", "evidence")
    return [dict(zip(names, (a, b, c, d.split(), e), strict=True)) for a, b, c, d, e in CONTROLS]
