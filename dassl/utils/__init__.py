"""Small tools. What needs torch is imported when it is first asked for."""

from dassl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoints": [
            "find_checkpoint",
            "load_checkpoint",
            "load_pretrained_weights",
            "newest_checkpoint",
            "resume_from_checkpoint",
            "save_plain",
            "save_checkpoint",
        ],
        "environment": ["collect_env_info", "library_versions", "peak_memory_mb"],
        "errors": ["UserError", "check_choice", "suggest", "user_errors"],
        "files": [
            "atomic_copy",
            "atomic_write",
            "check_isfile",
            "file_sha256",
            "listdir_nohidden",
            "missing_files",
            "partial_files",
            "mkdir_if_missing",
            "remove_partial_files",
            "write_json",
        ],
        "images": ["read_image"],
        "locks": ["lock_folder", "unlock_folder"],
        "logger": ["Tee", "log_to", "setup_logger"],
        "meters": ["AverageMeter", "MetricMeter"],
        "modules": [
            "count_num_param",
            "init_network_weights",
            "open_all_layers",
            "open_specified_layers",
        ],
        "reading": [
            "check_kind",
            "open_file",
            "parse_yaml",
            "read_bytes",
            "read_json",
            "read_json_lines",
            "read_text",
            "read_yaml",
            "reason",
        ],
        "registry": ["Registry"],
        "seeds": ["get_rng_state", "resolve_seed", "set_random_seed", "set_rng_state"],
        "tensor_files": ["read_tensors"],
        "tensor_cache": ["TensorCache"],
        "values": ["tolist_if_not"],
    },
)
