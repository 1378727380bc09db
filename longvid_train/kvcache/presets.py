"""Policies by name, from the least to the most compressed."""

from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.schemes.bias_removed import BiasRemoved
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.schemes.intp import Intp
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.schemes.transform_coding import TransformCoding

PRESETS: dict[str, CachePolicy] = {
    "full": CachePolicy(),
    "static8": CachePolicy(keys=StaticChannel(bits=8, search="minmax"), values=StaticChannel(bits=8, search="minmax")),
    "static4": CachePolicy(keys=StaticChannel(bits=4), values=StaticChannel(bits=4)),
    "static3": CachePolicy(keys=StaticChannel(bits=3), values=StaticChannel(bits=3)),
    "static2": CachePolicy(keys=StaticChannel(bits=2), values=StaticChannel(bits=2)),
    "bias2": CachePolicy(keys=BiasRemoved(bits=2), values=StaticChannel(bits=2)),
    "lloyd2": CachePolicy(keys=LloydMax(bits=2, rotary="pre"), values=LloydMax(bits=2)),
    "transform2": CachePolicy(keys=TransformCoding(bits=2, rotary="pre"), values=TransformCoding(bits=2)),
    "k4v2": CachePolicy(keys=DynamicGroups(bits=4, along="channels", group=None), values=StaticChannel(bits=2)),
    "k4v2_static": CachePolicy(keys=StaticChannel(bits=4), values=StaticChannel(bits=2)),
    "kivi_g32": CachePolicy(
        keys=DynamicGroups(bits=2, along="tokens", group=32), values=DynamicGroups(bits=2, along="channels", group=32)
    ),
    "kivi_g128": CachePolicy(
        keys=DynamicGroups(bits=2, along="tokens", group=128),
        values=DynamicGroups(bits=2, along="channels", group=None),
    ),
    "intp2_minmax": CachePolicy(keys=Intp(search="minmax"), values=Intp(search="minmax")),
    "intp2": CachePolicy(keys=Intp(), values=Intp()),
}


def preset(name: str) -> CachePolicy:
    """The policy called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        hint = nearest(name, list(PRESETS)) or "."
        raise UserError(f"cache policy '{name}' is unknown{hint} Use one of {', '.join(PRESETS)}")
    return PRESETS[name]
