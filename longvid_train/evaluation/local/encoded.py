"""Encoded media that wait for further questions about them: the last few."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from longvid_train.generate.chat import Conversation


class EncodedMedia:
    """Conversations without turns whose media are encoded.

    Args:
        most: kept at once; those asked about longest ago go first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Conversation] = OrderedDict()

    def fork(self, key: Hashable, open_media: Callable[[], Conversation]) -> Conversation:
        """A conversation of its own about media that are encoded once.

        Args:
            key: what tells media and how they are shown apart.
            open_media: called where they are not kept; its conversation is encoded here.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            talk = open_media()
            talk.encode()
            self._kept[key] = talk
        return self._kept[key].fork()
