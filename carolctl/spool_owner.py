"""Root in somebody else's data home: in its spool it acts as that user. Light: an `emit` begins with it.

Incident: events that root left in a user's spool could not be read by that user's ticks; folders that root had made
shut the user out of the scheduler; and a link that the user had put in place of a folder had root move files to
wherever it led. Decision: for as long as root looks at a spool, its effective user is the owner of the data home.
Consequence: what it makes belongs to the owner, and no trick in there gets anybody further than their own rights.
"""

import os

from carolctl import places


class AsOwner:
    """While this context lasts; a no-op for everybody but root, at home, and within another one."""

    __slots__ = ("_groups", "_switched")

    def __enter__(self) -> None:
        self._switched = False
        if os.geteuid():
            return
        try:
            owner = os.stat(places.data_home())
        except OSError:
            return
        if owner.st_uid:
            self._groups = os.getgroups()
            self._become(owner.st_uid, owner.st_gid)

    def _become(self, uid: int, gid: int) -> None:
        try:
            os.setgroups([])
            os.setegid(gid)
            os.seteuid(uid)
        except OSError:
            # A sandbox that lets nobody change who it is.
            self._come_back()
        else:
            self._switched = True

    def __exit__(self, *_trouble: object) -> None:
        if self._switched:
            self._come_back()

    def _come_back(self) -> None:
        try:
            os.seteuid(0)
            os.setegid(os.getgid())
            os.setgroups(self._groups)
        except OSError:
            if os.geteuid():
                raise
