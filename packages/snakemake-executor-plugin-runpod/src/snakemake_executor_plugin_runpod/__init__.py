"""Snakemake executor plugin: each job on a pod of its own, rented from RunPod and given back."""

from snakemake_interface_executor_plugins.settings import CommonSettings

from snakemake_executor_plugin_runpod.run.executor import Executor
from snakemake_executor_plugin_runpod.settings import ExecutorSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=False,  # the files go to the pod by SSH, from here
    can_transfer_local_files=True,
    pass_default_storage_provider_args=False,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,  # secrets are for no command line
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
    pass_group_args=True,
)

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
