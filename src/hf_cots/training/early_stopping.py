"""Stop training when evaluation no longer improves (`--early_stopping_patience`)."""

import logging

from transformers import EarlyStoppingCallback


logger = logging.getLogger(__name__)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback, made resumable: a resumed run continues the count of its checkpoint, and a stopped run
    stays stopped unless it is given more patience."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"] if saved else 0
        self._stop_if_due(args, state, control)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        super().on_evaluate(args, state, control, metrics, **kwargs)
        self._stop_if_due(args, state, control)

    def _stop_if_due(self, args, state, control) -> None:
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
            logger.info(
                "stopped at step %d: no improvement in the last %d evaluations (best %s: %.4g at step %s)",
                *(state.global_step, self.early_stopping_patience_counter, args.metric_for_best_model),
                *(state.best_metric, state.best_global_step),
            )
