"""Imports what the steps' commands import, once for all of them: the server that starts them forks from here."""

import pytorch_lightning
import transformers

import longvid_train.data.features.extraction
import longvid_train.evaluation.local.run
import longvid_train.training.cli
import longvid_train.training.features
import longvid_train.training.module
import longvid_train.world.build

__all__ = ["longvid_train", "pytorch_lightning", "transformers"]
