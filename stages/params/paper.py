"""What the paper profile's data are told by."""

from typing import Annotated

from pydantic import AfterValidator

from stages.params.model_source import is_url
from stages.params.remote_file import RemoteFile
from stages.params.section import Count, Section


def _address(value: str) -> str:
    RemoteFile.parse(value)
    return value


Address = Annotated[str, AfterValidator(_address)]  # URL#sha256=HEX&size=BYTES


def _file_or_address(value: str) -> str:
    return _address(value) if is_url(value) else value


FileOrAddress = Annotated[str, AfterValidator(_file_or_address)]


class Images(Section):
    """How many images a split must have: anything else is another data set, or half of one."""

    train: Count
    val: Count
