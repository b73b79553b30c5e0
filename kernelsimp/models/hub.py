"""Published networks whose weights lie on the Hugging Face hub: fetched by timm, or in one line not.

The hub's library tries again for a minute where nobody answers. So it is asked once, briefly, whether it has
the network; where it does not answer, the library is told to look in its cache alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError, did_you_mean

HUB = "hf-hub"
"""The word before the name of a network on the hub: `hf-hub:OWNER/NAME`."""

PATIENCE = 10.0
"""Seconds that the hub has for its first answer."""


@contextmanager
def from_hub(spec: str, repository: str | None) -> Iterator[None]:
    """Let timm fetch from the hub within the block, or from the cache of earlier fetches where it is silent.

    `repository` is OWNER/NAME there, with or without @REVISION; None where the weights lie elsewhere. Raises
    `KernelsimpError`, with the way round it, where the hub has no such network, or neither it nor the cache.
    """
    if repository is None:
        yield
        return
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    silence = None if constants.HF_HUB_OFFLINE else _silence(spec, repository)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or silence is not None
    try:
        yield
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if before else f"{constants.ENDPOINT} does not answer"
        why += f" ({silence})" if silence else ""
        raise KernelsimpError(
            f"{spec}: {why}, and its files are not in the cache; {_advice(spec)}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def weights_on_hub(timm: Any, name: str) -> str | None:
    """Return where on the hub the weights of timm's NAME or NAME.TAG lie; None where they lie elsewhere.

    Raises `KernelsimpError` where timm knows no such weights.
    """
    base, _, tag = name.partition(".")
    known = [
        item.partition(".")[2] for item in timm.list_pretrained(f"{base}*") if item.split(".")[0] == base
    ]
    if tag and tag not in known:
        raise KernelsimpError(f"timm:{name}: no such weights of {base}{did_you_mean(tag, known)}")
    if not known:
        raise KernelsimpError(f"timm:{name}: timm has no weights of it; {_advice(f'timm:{name}')}")
    place: str | None = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    return place


def _silence(spec: str, repository: str) -> str | None:
    """Return why the hub does not answer, None where it does and has the network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = repository.partition("@")
    try:
        HfApi().model_info(name, revision=revision or None, timeout=PATIENCE)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise KernelsimpError(
                f"{spec}: the hub has no such network, or only for those who are let in; check the name"
            ) from error
        return f"status {status}"
    except ValueError as error:  # a name that cannot be one
        raise KernelsimpError(f"{spec}: {short(error)}; expected {HUB}:OWNER/NAME") from error
    except Exception as error:
        return short(error)
    return None


def _advice(spec: str) -> str:
    return f"download the checkpoint yourself and pass its file with --arch {spec}"
