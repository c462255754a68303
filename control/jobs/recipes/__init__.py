"""One module per kind of job: what it does, what it waits for, and what its attempts may leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.jobs.model import JobKind
from control.jobs.recipes.copying import CopyRecipe
from control.jobs.recipes.deleting import DeleteRecipe
from control.jobs.recipes.hashing import HashRecipe
from control.jobs.recipes.importing import FillRecipe, ImportRecipe
from control.jobs.recipes.moving import MoveRecipe
from control.jobs.recipes.registering import RegisterRecipe
from control.jobs.recipes.uploading import UploadRecipe
from control.jobs.recipes.verifying import VerifyRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.jobs.recipes.base import Recipe

RECIPES: Mapping[JobKind, Recipe] = {
    JobKind.IMPORT: ImportRecipe(),
    JobKind.COPY: CopyRecipe(),
    JobKind.MOVE: MoveRecipe(),
    JobKind.VERIFY: VerifyRecipe(),
    JobKind.HASH: HashRecipe(),
    JobKind.DELETE: DeleteRecipe(),
    JobKind.FILL: FillRecipe(),
    JobKind.REGISTER: RegisterRecipe(),
    JobKind.UPLOAD: UploadRecipe(),
}
