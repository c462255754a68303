"""What can be wrong with the catalogue, or with what was asked of it."""

from __future__ import annotations

from dataplane.errors import GlissadeError


class CatalogError(GlissadeError):
    """The catalogue cannot be used as it is; the daemon refuses to start. The message says why."""

    code = "catalog_error"


class CatalogInUseError(CatalogError):
    """Another daemon has this database file open."""

    code = "catalog_in_use"


class UnsafeCatalogPathError(CatalogError):
    """The database file lies where SQLite cannot keep its promises (NFS, FUSE), or others could read it."""

    code = "catalog_path_unsafe"


class SchemaTooNewError(CatalogError):
    """The database was migrated by a newer version of Glissade."""

    code = "schema_too_new"


class SchemaTooOldError(CatalogError):
    """The database has the tables of an earlier version, or none; it is upgraded by `glissade db upgrade`."""

    code = "schema_too_old"
    retryable = True


class CatalogUnavailableError(CatalogError):
    """The database does not answer now."""

    code = "catalog_unavailable"
    retryable = True


class CommitUnknownError(CatalogUnavailableError):
    """The database went away while it committed, and whether it did could not be found out."""

    code = "commit_unknown"


class ImageError(GlissadeError):
    """An image in the catalogue is not what the request needs."""

    code = "image_error"


class ImageNotFoundError(ImageError):
    """There is no such image, or it was deleted."""

    code = "not_found"


class ImageExistsError(ImageError):
    """The id was used before; an image id never comes back as another image."""

    code = "image_exists"


class ImageStateError(ImageError):
    """The image is in a state that does not allow this (not active, protected, being deleted)."""

    code = "image_state"


class LocationNotFoundError(ImageError):
    """The image is not in that store."""

    code = "location_not_found"


class LastLocationError(ImageError):
    """This is the image's last place: removing it would lose the image."""

    code = "last_location"


class ImageProtectedError(ImageError):
    """The image is protected from being deleted."""

    code = "image_protected"


class MemberExistsError(ImageError):
    """The image is shared with that project already."""

    code = "member_exists"


class MemberNotFoundError(ImageError):
    """The image is not shared with that project."""

    code = "member_not_found"


class NoSuchPropertyError(ImageError):
    """The image has no property of that name."""

    code = "no_such_property"


class NoSuchTagError(ImageError):
    """The image has no such tag."""

    code = "no_such_tag"


class PropertyExistsError(ImageError):
    """The image has a property of that name already."""

    code = "property_exists"


class ImageQuotaError(ImageError):
    """The image has as many properties, tags or members as it may have, or too long ones."""

    code = "image_quota"
