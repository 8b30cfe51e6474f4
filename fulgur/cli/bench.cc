#include "fulgur/cli/cli.h"
namespace fulgur::cli {
void add_bench(CLI::App&, Common&) {}
}
