"""Names of the files that jobs leave in the store and in their checkpoints."""

EXTRACTOR_FILE, REFERENCE_FILE = "extractor.safetensors", "reference.safetensors"
LEARNGENE_FILE = "learngene.safetensors"
INHERITED_FILE = "inherited.safetensors"
MODEL_FILE = "model.safetensors"  # of a base model, and of an ancestor
DELTA_FILE = "delta.safetensors"  # of a transfer: what it changed
BANK_FILE = "bank.parquet"
SAMPLES_FILE = "samples.png"
RECORD_FILE = "record.json"  # written last: a job is finished if and only if it exists
STATE_FILE, PROGRESS_FILE = "state.pt", "progress.json"  # of a checkpoint
