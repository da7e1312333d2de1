"""What lies behind `speech_folder:DIR`: its manifest, its files and their content."""
