"""How to check a run folder offline, and with whose tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def checks(folder: str, content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Ways to check the record, ours first: ``tool``, ``command``, ``shows``. Only those that this run offers."""
    stages = {stage["name"]: stage["state"] for stage in content["integrity"].get("stages", ())}
    found = [
        _check("Clearance", f"clearance verify {folder}", "every digest, chain and stage above; names file, row and column"),
        _check(
            "Python and pyarrow alone",
            f"clearance verify --write-verifier clearance_verify.py; python clearance_verify.py {folder}",
            "the same, by one file that shares no code with the program and can be handed to others",
        ),
        _check(
            "sha256sum", f"sha256sum {folder}/run.json", "the statement, to compare with a copy of its digest kept elsewhere"
        ),
        _check(
            "sed and sha256sum",
            f"sed '$d' {folder}/report.html | sha256sum; tail -n 1 {folder}/report.html",
            "that this page is as it was written: both digests are equal",
        ),
        _check(
            "DuckDB or any reader of Parquet",
            f"SELECT outcome, count(*) FROM '{folder}/samples/*.parquet' GROUP BY outcome",
            "the counts of this page, from the rows themselves",
        ),
    ]
    if stages.get("signature", "skip") != "skip" or content["integrity"].get("signed"):
        found += [
            _check(
                "OpenSSL",
                "openssl pkeyutl -verify -pubin -inkey statement.pub -rawin …",
                "the Ed25519 signature in run.dsse.json",
            ),
            _check("securesystemslib (in-toto)", f"{folder}/run.dsse.json", "the same signature, in its DSSE envelope"),
            _check(
                "scitt-cose, or any verifier of COSE receipts",
                f"clearance receipt {folder} --key KEY --out KEY.receipt",
                "that one request is in the sealed run, without the rest of it",
            ),
        ]
    if stages.get("time stamp", "skip") != "skip" or content["integrity"].get("stamped"):
        stamped = "run.dsse.json" if content["integrity"].get("signed") else "run.json"
        command = f"openssl ts -verify -in {folder}/run.tsr -data {folder}/{stamped} -CAfile ROOTS.pem"
        found.append(_check("OpenSSL", command, "the RFC 3161 time stamp"))
    if content["measures"]["xmp_rate"]["k"]:
        found.append(_check("ExifTool", "exiftool -XMP:all FILE", "the XMP of a released picture"))
    if content["measures"]["c2pa_rate"]["k"]:
        found.append(_check("c2patool", "c2patool FILE", "the C2PA manifest of a released picture, and its signer"))
    return found


def _check(tool: str, command: str, shows: str) -> dict[str, str]:
    return {"tool": tool, "command": command, "shows": shows}
