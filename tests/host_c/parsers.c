/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's parsers as a program of the host: cases on stdin, answers on stdout, until the end of the input.
 *
 * Case: u8 kind ('P' packet, 'H' hello), u8 fill, u16 zero, u32 link, u32 length, the bytes. Answer to P: u32 status,
 * struct packet. To H: u32 status, u64 offset and u64 length of the name. `fill` is what stands in the parsers' buffers
 * behind the bytes: in the kernel that is left over from other packets.
 */
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "packet.h"
#include "tls_hello.h"

struct request {
	__u8 kind;
	__u8 fill;
	__u16 zero;
	__u32 link;
	__u32 length;
};

static void packet(const __u8 *frame, const struct request *request)
{
	/* As gate.c does it: a zeroed window of the first bytes. On the heap, where a read past its end is seen. */
	__u8 *window = calloc(1, PACKET_WINDOW);
	struct packet parsed = {};
	__u32 status;

	memcpy(window, frame, request->length < PACKET_WINDOW ? request->length : PACKET_WINDOW);
	status = packet_parse(window, request->length, request->link, &parsed);
	fwrite(&status, sizeof(status), 1, stdout);
	fwrite(&parsed, sizeof(parsed), 1, stdout);
	free(window);
}

static void hello(const __u8 *payload, const struct request *request)
{
	struct hello *h = malloc(sizeof(*h));
	__u64 n = request->length < HELLO_WINDOW ? request->length : HELLO_WINDOW;
	__u32 status;

	memset(h, request->fill, sizeof(*h));
	memcpy(h->bytes, payload, n);
	status = hello_name(h, n);
	if (status != HELLO_NAMED)
		h->name_offset = h->name_length = 0;
	fwrite(&status, sizeof(status), 1, stdout);
	fwrite(&h->name_offset, sizeof(h->name_offset), 1, stdout);
	fwrite(&h->name_length, sizeof(h->name_length), 1, stdout);
	free(h);
}

int main(void)
{
	struct request request;

	while (fread(&request, sizeof(request), 1, stdin) == 1) {
		__u8 *bytes = malloc(request.length ? request.length : 1);

		if (fread(bytes, 1, request.length, stdin) != request.length)
			return 1;
		if (request.kind == 'P')
			packet(bytes, &request);
		else
			hello(bytes, &request);
		free(bytes);
		fflush(stdout);
	}
	return 0;
}
