"""Movies of MovieNet as files hold them: shots, key frames, subtitles, times and texts."""
