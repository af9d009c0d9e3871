<?php
// As much of Yii2's and Laravel's database layers as the cookbook uses, over PDO: its examples run here without the frameworks.
namespace {
    function _pdo(): PDO
    {
        static $pdo;
        return $pdo ??= new PDO(getenv('AI_WORKER_DSN'), getenv('AI_WORKER_USER'), getenv('AI_WORKER_PASSWORD'), [
            PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION, PDO::ATTR_DEFAULT_FETCH_MODE => PDO::FETCH_ASSOC,
        ]);
    }

    function _run(string $sql, array $values): PDOStatement
    {
        $statement = _pdo()->prepare($sql);
        $statement->execute($values);
        return $statement;
    }

    function _insert(string $table, array $columns, array $rows): PDOStatement
    {
        $places = '(' . implode(', ', array_fill(0, count($columns), '?')) . ')';
        $sql = "INSERT INTO $table (" . implode(', ', $columns) . ') VALUES ' . implode(', ', array_fill(0, count($rows), $places));
        return _run($sql, array_merge(...array_map('array_values', $rows)));
    }

    final class YiiCommand
    {
        public function __construct(private string $sql = '', private array $values = [], private array $batch = [])
        {
        }

        public function batchInsert(string $table, array $columns, array $rows): self
        {
            return new self(batch: [$table, $columns, $rows]);
        }

        public function execute(): int
        {
            return ($this->batch ? _insert(...$this->batch) : _run($this->sql, $this->values))->rowCount();
        }

        public function queryAll(): array
        {
            return _run($this->sql, $this->values)->fetchAll();
        }
    }

    final class YiiConnection
    {
        public function transaction(callable $work): mixed
        {
            return _transaction($work, $this);
        }

        public function createCommand(string $sql = '', array $values = []): YiiCommand
        {
            return new YiiCommand($sql, $values);
        }

        public function getLastInsertID(): string
        {
            return _pdo()->lastInsertId();
        }
    }

    function _transaction(callable $work, mixed ...$arguments): mixed
    {
        _pdo()->beginTransaction();
        $value = $work(...$arguments);
        _pdo()->commit();
        return $value;
    }

    final class Yii
    {
        public static object $app;
    }

    Yii::$app = (object) ['aiDb' => new YiiConnection()];
}

namespace Illuminate\Support\Facades {
    final class DB
    {
        public static function connection(string $name): self
        {
            return new self();
        }

        public function transaction(callable $work): mixed
        {
            return \_transaction($work);
        }

        public function table(string $name): Table
        {
            return new Table($name);
        }

        public function select(string $sql, array $values): array
        {
            return \_run($sql, $values)->fetchAll(\PDO::FETCH_OBJ);
        }
    }

    final class Table
    {
        private array $where = ['1', 1];

        public function __construct(private string $name)
        {
        }

        public function where(string $column, mixed $value): self
        {
            $this->where = [$column, $value];
            return $this;
        }

        public function value(string $column): mixed
        {
            return \_run("SELECT $column FROM {$this->name} WHERE {$this->where[0]} = ?", [$this->where[1]])->fetchColumn();
        }

        public function insert(array $rows): bool
        {
            $rows = array_is_list($rows) ? $rows : [$rows];
            \_insert($this->name, array_keys($rows[0]), $rows);
            return true;
        }

        public function insertGetId(array $row, string $sequence): int
        {
            $this->insert($row);
            return (int) \_pdo()->lastInsertId();
        }
    }
}
