"""The findings of an audit as a data set of the Hugging Face hub: tables, summary, and a card that says what they mean.

The images are not sent. What is sent comes in one commit, whole or not at all.
"""

import io
import os
from typing import TYPE_CHECKING, Any

from volgrowth.errors import OutputError
from volgrowth.plain import plain
from volgrowth.storage.failures import store_error

if TYPE_CHECKING:
    from volgrowth.audit.output.result import Audit

FINDINGS, SUMMARY = "findings.parquet", "summary.json"


def push_findings(audit: "Audit", repository: str, private: bool) -> str:
    """Send findings, summary and card to a repository of data sets, and return its URL; see `Audit.push_to_hub`."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    card, numbers = hub_card(audit).encode(), audit.store.read(SUMMARY)
    try:
        with audit.store.local_file(FINDINGS) as path:
            url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
            files: list[tuple[str, Any]] = [("README.md", io.BytesIO(card)), (SUMMARY, io.BytesIO(numbers))]
            adds = [CommitOperationAdd(name, content) for name, content in [*files, (FINDINGS, path)]]
            api.create_commit(repository, adds, commit_message="Findings of volgrowth", repo_type="dataset")
    except HFValidationError as error:
        raise OutputError(
            f"{repository!r} names no repository of the hub ({error}): expected name or owner/name"
        ) from None
    except OutputError:
        raise
    except Exception as error:  # the client raises its own kinds, and those of its HTTP library
        raise store_error(
            OutputError,
            f"the findings cannot be sent to {repository} on the hub",
            f"hf://datasets/{repository}",
            error,
            "check the name, the right to write there (HF_TOKEN) and the network, and try again",
        ) from None
    return str(url)


def hub_card(audit: "Audit") -> str:
    """Return the card of the findings, in Markdown: what was audited, what was found, and what limits it."""
    summary, frozen = audit.summary, audit.frozen
    counts, detection, proof = summary["counts"], summary["detection"], summary.get("verification")
    facts = {
        "audited": f"{frozen.data.name}, {counts['ok']:,} of {counts['rows']:,} rows scored",
        "model": f"{frozen.model.name} ({frozen.model.hash})",
        "measure": f"preset {summary['measure'].get('preset')}",
    }
    if detection:
        found = f"{detection['memorized']:,} distinct images at a false-discovery rate of {detection['fdr']:g}"
        facts["memorized"] = found if detection.get("tests", 1) else "none of the images could be judged"
    if proof:
        facts["proven"] = f"{proof['reproduced_images']:,} images, by {proof['samples']:,} samples of the model"
    limits = [*summary.get("caveats", ()), *(detection or {}).get("warnings", ())]
    lines = [
        *("---", "configs:", "- config_name: default", f"  data_files: {FINDINGS}", "tags:", "- memorization", "---"),
        *("", "# Memorization of training images", ""),
        "The findings of volgrowth, one row for each image of the data set: `row` is its place there, `image_id` its "
        "id, and `memorized` says whether it is flagged. The images are not here.",
        *("", "| | |", "|---|---|"),
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        *("", *(f"- {_cell(said)}" for said in limits), ""),
        "A score ranks images and is no probability. An image that is not flagged may be memorized all the same.",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return "".join(f"\\{each}" if each in "\\|<>[]`*_" else each for each in plain(text))
