// What the thread sanitizer leaves out: libtorch and libgomp are built without it, so what happens inside them, and what they
// order among threads, cannot be judged. Compiled in, because CTest lists tests before a preset's environment is set.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libtorch_cpu.so\n"
         "called_from_lib:libc10.so\n"
         "race:libtorch_cpu.so\n"
         "race:libgomp\n"
         "mutex:c10::RegistrationHandleRAII\n";
}
