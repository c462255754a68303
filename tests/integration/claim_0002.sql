-- What a daemon of the version with schema 0002 asks PostgreSQL before it claims a job that waits, as that
-- version's own code (control/jobs/queue.py, free_jobs(WAITING)) made it, for four jobs.
SELECT jobs.seq, jobs.id, jobs.kind, jobs.state, jobs.phase, jobs.image_id, jobs.request, jobs.request_id, jobs.principal, jobs.rate_limit, jobs.epoch, jobs.owner, jobs.lease_until, jobs.cleaned_epoch, jobs.failures, jobs.not_before, jobs.waiting_for, jobs.cancel_requested, jobs.published, jobs.checkpoint, jobs.error, jobs.report, jobs.created_at, jobs.updated_at, jobs.started_at, jobs.finished_at
FROM jobs
WHERE jobs.state = 'queued' AND jobs.waiting_for IS NULL AND (jobs.not_before IS NULL OR jobs.not_before <= (timezone('utc', clock_timestamp()) + make_interval(secs => 0.0)) OR jobs.not_before > (timezone('utc', clock_timestamp()) + make_interval(secs => 300.0))) AND NOT (EXISTS (SELECT *
FROM jobs AS other
WHERE other.image_id = jobs.image_id AND (other.state = 'running' OR other.state = 'queued' AND other.kind = 'import' AND other.id != jobs.id))) ORDER BY jobs.seq
 LIMIT 4 FOR UPDATE OF jobs SKIP LOCKED
