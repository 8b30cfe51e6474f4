// What the thread sanitizer leaves out: libtorch and libgomp are built without it, so the atomics and barriers by which they
// order threads (a reference count before a free) cannot be seen; their locks can. Compiled in, because CTest lists tests
// before a preset's environment is set.
extern "C" const char* __tsan_default_suppressions() {
  return "race:libtorch_cpu.so\n"
         "race:libc10.so\n"
         "race:libgomp\n";
}
