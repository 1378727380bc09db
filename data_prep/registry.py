"""Every module that is run as ``python -m data_prep.NAME``."""

SOURCES = {
    "llava_pretrain": "stage 1: 558K images with captions (LAION, CC, SBU)",
    "webvid": "stage 1: video clips with captions",
    "llava_instruct": "stage 2: LLaVA-1.5's mix of 665K conversations about images, and text",
    "video_chatgpt": "stage 2: VideoInstruct100K about ActivityNet videos",
    "sharegpt": "stage 2: text conversations",
    "allava": "window extension: ALLaVA-4V's captions and instructions",
    "msvd_qa": "evaluation: MSVD-QA",
    "msrvtt_qa": "evaluation: MSRVTT-QA",
    "activitynet_qa": "evaluation: ActivityNet-QA",
    "nextqa": "evaluation: NExT-QA, multiple choice",
    "egoschema": "evaluation: EgoSchema, multiple choice",
    "videomme": "evaluation: Video-MME, multiple choice, with subtitles",
    "mlvu": "evaluation: MLVU's development set, multiple choice",
    "longvideobench": "evaluation: LongVideoBench, multiple choice, with subtitles",
    "movienet": "stage 3: MovieNet's key frames, subtitles and descriptions, and the released Long-VideoQA",
    "long_videoqa": "stage 3: questions about movies by a teacher model, from synopses and scripts",
    "longalpaca": "stage 3: long text",
    "folder": "your own videos, with subtitles",
}
"""Sources: their modules have ``add_arguments`` and ``make_source``."""

TOOLS = {
    "parquet": "a manifest to Parquet files that the datasets library reads, and back",
    "check": "check manifests: rows, files, decoding, lengths, repeated rows, leaks; draw an overview",
    "check_features": "compare every checksum of cached tower features",
    "merge": "join the shards of one manifest and verify them",
    "sample": "draw a number of rows from a manifest",
    "unpack": "unpack zip and tar archives of media safely",
}
"""Tools: their modules have ``add_arguments`` and ``run``."""
