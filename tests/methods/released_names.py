# SPDX-License-Identifier: Apache-2.0
"""Name prefixes of the single-stage decoders' released weights -> here, by which golden files name their tensors."""

from __future__ import annotations

HEAD_NAMES = {f"last_conv.{index}.": f"head.{index}." for index in (0, 1, 4, 5, 8)}
ASPP_NAMES = {
    **{f"aspp.aspp{k}.atrous_conv.": f"context.branches.{k - 1}.0." for k in (1, 2, 3, 4)},
    **{f"aspp.aspp{k}.bn.": f"context.branches.{k - 1}.1." for k in (1, 2, 3, 4)},
    "aspp.global_avg_pool.1.": "context.image.0.",
    "aspp.global_avg_pool.2.": "context.image.1.",
    "aspp.conv1.": "context.fuse.0.",
    "aspp.bn1.": "context.fuse.1.",
}
CUE_NAMES = {
    "fc8_skip.": "coupling.skip.",
    "fc8_x.": "coupling.merge.",
    "shallow_mask.fc_deep.": "coupling.cue.",
    "shallow_mask.fc_skip.": "coupling.detail.",
    "shallow_mask.fc_cls.": "coupling.out.",
}
SSSS_NAMES = {**ASPP_NAMES, **CUE_NAMES, **HEAD_NAMES}
FCA_NAMES = {
    **{
        f"fca.fca{k}.conv{path}_{step}.": f"context.strips.{k - 1}.{name}.{step - 1}."
        for k in (1, 2, 3, 4)
        for path, name in ((1, "column_row"), (2, "row_column"))
        for step in (1, 2)
    },
    "fca.ca.sharedMLP.": "context.attention.0.both.",
    "fca.sa.": "context.recalibrate.",
    "fca.global_avg_pool.1.": "context.image.0.",
    "fca.global_avg_pool.2.": "context.image.1.",
    "fca.conv1.": "context.fuse.0.",
    "fca.bn1.": "context.fuse.1.",
}
SF2_NAMES = {
    f"sf2.{part}{step}{suffix}.": f"coupling.{stream}.{name}.{index}."
    for index, part in enumerate(("conv", "bn"))
    for step, name in enumerate(("first", "second", "third", "last"), start=1)
    for suffix, stream in (("h", "low"), ("v", "high"))
}
ALIGN_NAMES = {
    "align1.down_l.": "coupling.align.low.",
    "align1.down_h.": "coupling.align.high.",
    "align1.flow_make.": "coupling.align.offset.",
}
WSFCN_NAMES = {**FCA_NAMES, **SF2_NAMES, **ALIGN_NAMES, **HEAD_NAMES}


def rename_key(names: dict[str, str], key: str) -> str:
    """A tensor's released name -> its name here, by its longest prefix in ``names``; KeyError for an unknown one."""
    prefix = max((prefix for prefix in names if key.startswith(prefix)), key=len, default=None)
    if prefix is None:
        raise KeyError(key)
    return names[prefix] + key.removeprefix(prefix)
