"""What can go wrong with a job besides the stores and the catalogue."""

from __future__ import annotations

from dataplane.errors import GlissadeError


class JobError(GlissadeError):
    """A job cannot be accepted, changed or carried out."""

    code = "job_error"


class JobNotFoundError(JobError):
    """There is no such job."""

    code = "not_found"


class JobFinishedError(JobError):
    """The job has ended; nothing can be changed about it."""

    code = "job_finished"


class CancelTooLateError(JobError):
    """The job has passed the point of no return: its result is published, only the rest of the work
    remains.
    """

    code = "cancel_too_late"


class JobCancelledError(JobError):
    """The job was cancelled on request."""

    code = "cancelled"


class LeaseLostError(JobError):
    """Somebody else works on the job now; this worker must not write another word about it."""

    code = "lease_lost"


class UnknownStoreError(JobError):
    """No store of that name is configured."""

    code = "unknown_store"


class StoreNotWritableError(JobError):
    """The store takes no images: read-only by nature or by configuration."""

    code = "read_only_store"


class DeleteNotAllowedError(JobError):
    """Nothing may be deleted from the store: read-only, or `allow_delete = false`."""

    code = "delete_not_allowed"


class SourceStoreNeededError(JobError):
    """The image is in several stores, and the request does not say which one to move it from."""

    code = "from_store_needed"


class SourceNotAllowedError(JobError):
    """The configuration does not allow to import from there."""

    code = "source_not_allowed"


class CannotPlanError(JobError):
    """There is nothing to plan about a job of this kind."""

    code = "cannot_plan"


class NothingToDoError(JobError):
    """What was asked for is so already; the job ends as `ignored`."""

    code = "nothing_to_do"


class QuarantinedError(JobError):
    """The bytes in the source store are not what the catalogue recorded, or not what was copied: they are
    kept, reported and never deleted.
    """

    code = "quarantined"


class InternalError(JobError):
    """A defect in Glissade; the log has the details under the job's id."""

    code = "internal_error"


class DrainingError(JobError):
    """The daemon is going down and takes no new work."""

    code = "draining"
    retryable = True
