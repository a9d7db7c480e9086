"""From other programs' model files to the folders that `checkpoint` loads. Nothing on the inference path imports this."""

from spct.conversion.convert import Converted, convert_gguf, write_model_folder
from spct.conversion.gguf_file import GGUFFile, read_gguf

__all__ = ["Converted", "GGUFFile", "convert_gguf", "read_gguf", "write_model_folder"]
