"""From the balancer section of a config to a balancer. Reports what does not fit before a model is loaded."""

from mftcoder.balancing.base import RunFacts, TaskBalancer
from mftcoder.config.balancer import BalancerConfig
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS


def build_balancer(config: BalancerConfig, facts: RunFacts, task_names: tuple[str, ...]) -> TaskBalancer:
    """The method `config.name`. ConfigError names every task without validation rows if the method needs them."""
    balancer: TaskBalancer = BALANCERS.load(config.name)(config, facts)
    missing = [name for name, rows in zip(task_names, facts.validation_rows, strict=True) if rows == 0]
    if balancer.needs_validation and missing:
        raise ConfigError(
            *(
                f"tasks.{name}: has no validation rows, which balancer '{config.name}' needs for every task. "
                "Raise data.val_size or give the task `validation` files."
                for name in missing
            )
        )
    return balancer
