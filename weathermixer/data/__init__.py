"""Reading and writing weather data: archives, sampling, the loader."""
