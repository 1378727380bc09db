"""Pre-training of the nano parts that ship with the package: tokenizer, language model, vision tower and Q-Former.

The papers start from pre-trained towers, Q-Formers and language models; so does the nano LLaMA-VID.
``python -m longvid_train.training.nano.pretrain`` (see ``scripts/pretrain_nano_parts.sh``) makes every file under
``longvid_train/assets``.
"""
