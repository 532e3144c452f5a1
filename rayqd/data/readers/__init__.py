"""Raw rows of whatever `data.source` names: one reader a kind of file, and no word about what a row says."""

from rayqd.data.readers.files import read_file, read_files
from rayqd.data.readers.hub import read_directory, read_hub
from rayqd.data.readers.remote import fetch_url
from rayqd.data.readers.table import Table

__all__ = ["Table", "fetch_url", "read_directory", "read_file", "read_files", "read_hub"]
