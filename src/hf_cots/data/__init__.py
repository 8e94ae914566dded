"""Image-text pairs: sources, augmentation, batches, caches."""

import datasets


# It would look up an outside host for each local file that is opened, to count a download.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
