"""Exports of the world's tiny models, each made once."""

import ctypes

import pytest
import torch
from transformers import BertConfig, ResNetConfig

from hf_cots import COTSConfig, COTSModel
from hf_cots.export.run import Export
from tests.support.tiny import NO_DROPOUT, SIZES, WORDS
from tests.support.worlds import SIDE, World, tiny_processor


pytest.importorskip("onnxruntime")


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True, scope="package")
def signal_stack():
    """Take back the stack for signals that OpenVINO sets: 11 KB, which the SIGCHLD handler of PyTorch's DataLoader
    overflows in a later test where registers are wide (AVX-512)."""
    libc, before = ctypes.CDLL(None), SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    yield
    libc.sigaltstack(ctypes.byref(before), None)


def resnet_folder(world: World):
    """An untrained COTS with a ResNet and projections of two layers."""
    folder = world.root / "resnet"
    if not folder.is_dir():
        torch.manual_seed(5)
        vision = ResNetConfig(
            image_size=SIDE, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
        )
        config = COTSConfig(
            vision_config=vision,
            text_config=BertConfig(**WORDS, **SIZES, **NO_DROPOUT),
            projection_dim=16,
            image_projection="mlp",
            text_projection="mlp",
            mvm_weight=0.0,
            task_weight=0.0,
            mask_token_id=4,
            special_token_ids=list(range(5)),
        )
        COTSModel(config).eval().save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def exported(world_of_exports):
    """The world's model in ONNX and fp32."""
    folder = world_of_exports.root / "onnx"
    Export(str(world_of_exports.model), folder).run()
    return folder


@pytest.fixture(scope="package")
def world_of_exports(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("exports"))
