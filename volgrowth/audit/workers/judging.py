"""The worker that judges scored rows for the analysis: it needs no model, no images and no GPU."""

from volgrowth.audit.output.judged import RowJudge, ScoreReader, judge_shard
from volgrowth.audit.output.manifest import Manifest, Shard
from volgrowth.audit.workers.loading import DataWorker
from volgrowth.config import AuditConfig


class JudgingWorker(DataWorker):
    """Judges shards and publishes their parts.

    Args:
        config, manifest, device: as for every worker.
        judge: by which rows are judged.
        reference: scores of the same rows under a reference model.
    """

    def __init__(
        self, config: AuditConfig, manifest: Manifest, device: str, judge: RowJudge, reference: ScoreReader | None
    ):
        super().__init__(config, manifest, device)
        self.by, self.reference = judge, reference

    def judge(self, shard: Shard) -> None:
        """Judge the rows of a shard."""
        judge_shard(self.store, shard, self.by, self.reference)
