"""Foreign formats: tables, JSON lists, Kaldi and Lhotse manifests, Parquet and Arrow with audio inside."""
