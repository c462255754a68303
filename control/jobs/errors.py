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


class GcRunningError(JobError):
    """Only one gc at a time runs in a daemon."""

    code = "gc_running"


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


class BatchError(JobError):
    """The jobs of a batch do not fit together: a name that is unknown or there twice, or jobs that wait for
    each other. Or they are more than may be queued, now or ever.
    """

    code = "invalid_batch"


class IdempotencyKeyReusedError(JobError):
    """The idempotency key was used for another request."""

    code = "idempotency_key_reused"


class PredecessorError(JobError):
    """A job of the batch that this one comes after was not done."""

    code = "predecessor_not_done"


class QueueFullError(JobError):
    """As many jobs are queued as may be."""

    code = "queue_full"
    retryable = True
    retry_after_s = 30.0


class DrainingError(JobError):
    """The daemon is going down and takes no new work."""

    code = "draining"
    retryable = True


class FormatMismatchError(JobError):
    """The content of the image is not what its `disk_format` says."""

    code = "format_mismatch"


class UnsafeImageError(FormatMismatchError):
    """The image would lead whoever opens it to other files (a backing file, a data file, extents elsewhere),
    or is several formats at once.
    """

    code = "unsafe_image"


class ImageTooLargeError(JobError):
    """The image has more bytes than `images.max_size`."""

    code = "image_too_large"


class RemoteImageError(JobError):
    """The image that was to be had from another Glance cannot be: the catalogue does not know that one, it
    has no such image, or the image is not active; or the token is no longer good.
    """

    code = "remote_image"


class UploadBrokenError(JobError):
    """The body of an upload did not come to its end: the client went away, or what it sent is no proper
    body.
    """

    code = "upload_broken"


class UploadStalledError(JobError):
    """For too long nothing came of the body of an upload."""

    code = "upload_stalled"


class UploadSizeError(JobError):
    """The body of an upload has not as many bytes as it was said to have."""

    code = "upload_size_mismatch"


class UploadLostError(JobError):
    """The node that had the connection of an upload died, was stopped, or may not go on with it: nobody else
    has its bytes.
    """

    code = "upload_lost"


class ImageGoneError(JobError):
    """The image was deleted while its bytes came in."""

    code = "image_gone"


class AddingDisabledError(StoreNotWritableError):
    """The store that an upload is to go to takes no images."""

    code = "adding_disabled"
