/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the targets share: a check that ends the run, so that libFuzzer keeps the input. */
#ifndef SALLYPORT_FUZZ_H
#define SALLYPORT_FUZZ_H

#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOLDS(what)                                                                    \
	do {                                                                           \
		if (!(what)) {                                                         \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                       \
		}                                                                      \
	} while (0)

#endif
