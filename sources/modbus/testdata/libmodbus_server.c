/* libmodbus as a peer:
 *   libmodbus_server IMAGE tcp PORT [UNIT EVERY DELAY_MS [ROUND STRIDE]]
 *   libmodbus_server IMAGE rtu TTY UNIT [EVERY DELAY_MS]
 * IMAGE as in pymodbus_server.py. With EVERY, each EVERY-th reply comes DELAY_MS
 * late; the requests that arrive meanwhile are answered after it, in order.
 * With ROUND, after as many requests each STRIDE-th holding register counts up,
 * another one every time, so that each register moves in STRIDE rounds. */
#include <modbus.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 65536, LINE = 4 * SIZE + 32 };
static char line[LINE];

static int registers(const char *hex, uint16_t *out)
{
	int n = 0;
	for (; strlen(hex) >= 4; hex += 4, n++) {
		char word[5] = { hex[0], hex[1], hex[2], hex[3], 0 };
		out[n] = (uint16_t)strtoul(word, NULL, 16);
	}
	return n;
}

static int bits(const char *text, uint8_t *out)
{
	int n = 0;
	for (; text[n] == '0' || text[n] == '1'; n++)
		out[n] = text[n] == '1';
	return n;
}

static modbus_mapping_t *load(const char *path)
{
	modbus_mapping_t *m = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
	FILE *f = fopen(path, "r");
	if (!m || !f)
		return NULL;
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		char *value = strchr(line, ' ');
		if (!value)
			continue;
		*value++ = 0;
		if (!strcmp(line, "holding"))
			m->nb_registers = registers(value, m->tab_registers);
		else if (!strcmp(line, "input"))
			m->nb_input_registers = registers(value, m->tab_input_registers);
		else if (!strcmp(line, "coil"))
			m->nb_bits = bits(value, m->tab_bits);
		else if (!strcmp(line, "discrete"))
			m->nb_input_bits = bits(value, m->tab_input_bits);
	}
	fclose(f);
	return m;
}

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	modbus_mapping_t *map = load(argv[1]);
	if (!map)
		fail("load image");
	int tcp = !strcmp(argv[2], "tcp");
	int every = argc > 6 ? atoi(argv[5]) : 0, delay = argc > 6 ? atoi(argv[6]) : 0;
	int round = argc > 8 ? atoi(argv[7]) : 0, stride = argc > 8 ? atoi(argv[8]) : 1;
	modbus_t *ctx = tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[3])) : modbus_new_rtu(argv[3], 115200, 'N', 8, 1);
	if (!ctx)
		fail("new");
	int listener = -1;
	if (tcp) {
		listener = modbus_tcp_listen(ctx, 4);
		if (listener < 0)
			fail("listen");
	} else {
		modbus_set_slave(ctx, atoi(argv[4]));
		if (modbus_connect(ctx))
			fail("connect");
	}
	uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
	for (int n = 1, asked = 0, phase = 0;;) {
		if (tcp && modbus_tcp_accept(ctx, &listener) < 0)
			fail("accept");
		for (;;) {
			int length = modbus_receive(ctx, query);
			if (length < 0 && tcp)
				break;
			if (length <= 0)
				continue;
			if (every && n++ % every == 0)
				usleep(delay * 1000);
			modbus_reply(ctx, query, length, map);
			if (round && ++asked % round == 0) {
				for (int i = phase; i < map->nb_registers; i += stride)
					map->tab_registers[i]++;
				phase = (phase + 1) % stride;
			}
		}
		modbus_close(ctx);
	}
}
