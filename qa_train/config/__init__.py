"""The typed configuration: sections, the table of stages, checks, composition, and the options of small commands.

Sections and stages are there at once; the functions and the options of commands are imported on first use.
"""

from typing import TYPE_CHECKING

from qa_train.config.settings.evaluation import EvalSetConfig, EvaluationConfig, StopConfig
from qa_train.config.settings.reliability import ReliabilityConfig
from qa_train.config.settings.sections import (
    BY_NAME,
    AugmentConfig,
    CheckpointingConfig,
    DataConfig,
    DeepspeedConfig,
    DpoConfig,
    EncoderConfig,
    LanguageModelConfig,
    LoraSettings,
    MixtureConfig,
    ModelConfig,
    PartConfig,
    PartsConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    StorageConfig,
    TrackingConfig,
    TrainerConfig,
)
from qa_train.config.settings.stages import STAGES, StageKind
from qa_train.utils.deferred import deferred

if TYPE_CHECKING:
    from qa_train.config.checks.stage_checks import check, require_root
    from qa_train.config.compose import compose_stage, read_stored, register, run_of, to_stage_config
    from qa_train.config.options import (
        ChatConfig,
        CleanConfig,
        ConvertConfig,
        EvalConfig,
        ExportConfig,
        OrderConfig,
        PairsConfig,
        PlanConfig,
        ServeConfig,
        parse_options,
    )
    from qa_train.config.places import config_dir, starter_dir
    from qa_train.config.references import changed, digests, from_references, written

if not TYPE_CHECKING:
    __all__, __getattr__ = deferred(__name__, __file__)
