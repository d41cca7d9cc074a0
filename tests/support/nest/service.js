// A service on the original. Each line of its input is a JSON list of calls to make at once, each with its arguments;
// it tells what came of them, which codes it sent and what it heard, a JSON list a line.
const { createRequire } = require('node:module');
const { createInterface } = require('node:readline');

const load = createRequire(`${process.env.PACKAGES}/`);
load('reflect-metadata');
const { Module } = load('@nestjs/common');
const { NestFactory } = load('@nestjs/core');
const { BaseStrategy, OnTaskVerified, RegisterStrategy, TaskFlowModule, TaskFlowService } = load(
  '@sotatech/nest-taskflow',
);

const QUEUE = 'orders';
const tell = (...told) => process.stdout.write(`${JSON.stringify(told)}\n`);

class Email extends BaseStrategy {
  async generate() {
    return '123456';
  }

  async send(metadata, otp) {
    tell('sent', metadata.id, otp);
  }
}
RegisterStrategy('EMAIL')(Email);

class Orders {
  async ship(metadata) {
    tell('heard', metadata);
  }
}
const ship = Object.getOwnPropertyDescriptor(Orders.prototype, 'ship');
Object.defineProperty(Orders.prototype, 'ship', OnTaskVerified(QUEUE)(Orders.prototype, 'ship', ship));

class AppModule {}
Module({
  imports: [TaskFlowModule.forRoot({ redis: { config: { path: process.env.REDIS_SOCKET } } })],
  providers: [Orders, Email],
})(AppModule);

async function main() {
  const app = await NestFactory.createApplicationContext(AppModule, { logger: false });
  const flow = app.get(TaskFlowService);
  tell('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    const calls = JSON.parse(line).map(([name, ...rest]) => flow[name](...rest));
    const done = await Promise.allSettled(calls);
    tell('done', ...done.map(({ status, value, reason }) => (status === 'fulfilled' ? value ?? null : `${reason}`)));
  }
  process.exit(0);
}
main();
