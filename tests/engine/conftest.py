"""Folders of the tiny random model that engine tests share."""

import pytest
from tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_folder_with_meta_head(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny_meta"), meta_head=True)
