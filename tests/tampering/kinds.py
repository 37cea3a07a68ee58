"""The kinds of tampering. Each takes a copy of a run and a source of chance, changes something, and returns where.

A kind returns the places (beginnings of paths) of which one must be named by a problem. Where it returns none, whatever is
named is right. Kinds whose change lies outside the record must be named as not covered.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.tampering import in_parts, in_record, in_tables
from tests.tampering.runs import Runs

Found = Literal["problem", "not covered"]
Apply = Callable[[Path, random.Random, Runs], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of tampering.

    Attributes:
        apply: does it. expected: how it must come out.
        stopped: it is done to a stopped run, and found when that is continued, or afterwards.
        erased: it is done to a run from which payloads were erased. compacted: to one whose small files became large parts.
        by_pixels: only decoding the picture finds it, which the small verifier names as not done.
        by_key: only the key, which lies outside the folder, finds it.
    """

    apply: Apply
    expected: Found = "problem"
    stopped: bool = False
    erased: bool = False
    compacted: bool = False
    by_pixels: bool = False
    by_key: bool = False

    @property
    def name(self) -> str:
        return self.apply.__name__.replace("_", " ")

    def victim(self, runs: Runs) -> Path:
        """The run that it is done to a copy of."""
        if self.compacted:
            return runs.compacted
        return runs.stopped if self.stopped else runs.erased if self.erased else runs.whole


KINDS: tuple[Kind, ...] = (
    *(
        Kind(apply=apply)
        for apply in (
            in_tables.a_bit_of_a_data_file,
            in_tables.a_bit_of_a_marker,
            in_tables.a_bit_of_the_statement,
            in_tables.a_bit_of_an_event_part,
            in_tables.a_bit_of_the_plan,
            in_tables.a_file_cut_emptied_or_removed,
            in_tables.a_link_in_the_place_of_a_file,
            in_tables.a_link_in_the_place_of_a_folder,
            in_tables.a_file_among_the_shards,
            in_tables.a_shard_of_another_run_after_the_seal,
            in_tables.a_further_shard,
            in_tables.two_shards_exchanged,
            in_tables.a_shard_removed,
            in_tables.a_row_edited_in_its_file,
            in_tables.a_row_edited_and_its_marker_redone,
            in_tables.a_row_edited_and_its_chain_redone,
            in_tables.a_row_edited_and_all_sealed_again,
            in_tables.rows_removed_or_reordered,
            in_tables.a_column_removed_or_of_another_type,
            in_tables.a_payload_emptied,
            in_tables.a_payload_exchanged,
            in_record.a_statement_changed_with_its_digest,
            in_record.the_statement_of_another_run,
            in_record.event_parts_removed,
            in_record.the_last_events_removed_with_their_head,
            in_record.events_exchanged_or_renamed,
            in_record.the_events_of_another_run,
            in_record.an_event_changed_with_its_chain,
            in_record.a_signature_changed_removed_or_exchanged,
            in_record.a_time_stamp_changed_removed_or_exchanged,
        )
    ),
    *(
        Kind(apply=apply, erased=True)
        for apply in (
            in_record.an_erased_payload_put_back,
            in_record.a_further_payload_emptied_beside_an_erasure,
            in_record.an_erasure_without_its_event,
        )
    ),
    Kind(apply=in_record.a_row_changed_under_cover_of_an_erasure),
    Kind(apply=in_record.the_requests_replaced_under_cover_of_an_erasure),
    Kind(apply=in_record.cells_outside_the_chain_replaced_under_cover_of_an_erasure),
    *(
        Kind(apply=apply, compacted=True)
        for apply in (
            in_parts.a_bit_of_a_part_or_of_their_index,
            in_parts.a_part_cut_removed_or_exchanged,
            in_parts.rows_of_a_part_edited_and_all_named_again,
            in_parts.an_index_edited_and_named_again,
            in_parts.the_index_of_another_run,
            in_record.a_statement_changed_with_its_digest,
            in_record.event_parts_removed,
        )
    ),
    Kind(apply=in_tables.a_picture_exchanged_with_its_digest, by_pixels=True),
    Kind(apply=in_record.a_signature_by_another_key, by_key=True),
    Kind(apply=in_record.everything_forged_anew, by_key=True),
    Kind(apply=in_tables.a_file_beside_the_record, expected="not covered"),
    Kind(apply=in_tables.a_report),
    Kind(apply=in_record.a_foreign_shard_before_the_seal, stopped=True),
    Kind(apply=in_record.the_plan_changed_while_stopped, stopped=True),
    Kind(apply=in_record.the_events_changed_while_stopped, stopped=True),
)
